"""The verbs of the command line, one file each: check the request, do it, write, print."""
