"""The interface to the machine: devices, signals, standard output, complete files, and messages for failures."""
