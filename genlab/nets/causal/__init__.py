"""Causal networks: the features at a generation step depend on earlier values alone."""
