"""Several processes: the ranks of one run, and the runs of a sweep."""
