"""Fast sampling: for each causal network, the cache that computes one generation step from what is kept."""
