"""From the words of a command line to checked values: configs, pictures, masks, labels and contexts, output files."""
