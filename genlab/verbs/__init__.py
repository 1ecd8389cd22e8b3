"""The verbs of the command line, one file each. A verb checks the request, does its work, writes files and prints."""
