"""Lossless compression: a likelihood turned into files that decode."""
