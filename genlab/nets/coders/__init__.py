"""Encoders, decoders and other networks that are not causal."""
