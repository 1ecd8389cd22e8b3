"""The machine below genlab: devices, signals, standard output, files written whole, and messages for failures."""
