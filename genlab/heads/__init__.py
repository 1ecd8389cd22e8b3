"""Heads: the distribution of a step's values, given features. Each owns its projection and returns integers."""

from genlab.heads.bernoulli import Bernoulli
from genlab.heads.categorical import Categorical

__all__ = ["Bernoulli", "Categorical"]
