"""Families: what owns an algorithm (likelihood, sampling, completion) and is given networks and heads."""

from genlab.models.autoregressive import Autoregressive

__all__ = ["Autoregressive"]
