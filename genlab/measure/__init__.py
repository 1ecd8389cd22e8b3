"""Measurements of trained models: likelihood in bits/dim, evaluation of a split, linear probes, quality of samples."""
