"""The verbs of the command line, one file each. Each checks the request, does the work, writes files and prints."""
