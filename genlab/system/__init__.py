"""What genlab asks of the machine: devices, signals, standard output, whole files, and sentences for its failures."""
