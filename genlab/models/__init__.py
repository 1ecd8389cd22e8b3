"""Families: what owns an algorithm (likelihood, sampling, completion) and is given networks and heads."""

from genlab.models.autoencoder import Autoencoder
from genlab.models.autoregressive import Autoregressive
from genlab.models.flow import Flow
from genlab.models.stacked import StackedAutoencoder

__all__ = ["Autoencoder", "Autoregressive", "Flow", "StackedAutoencoder"]
