"""Families: what owns an algorithm (likelihood, sampling, completion) and is given networks and heads."""

from genlab.models.autoencoder import Autoencoder
from genlab.models.autoregressive import Autoregressive
from genlab.models.mixture import GaussianMixture
from genlab.models.mixture_density import MixtureDensity
from genlab.models.stacked import StackedAutoencoder

__all__ = ["Autoencoder", "Autoregressive", "GaussianMixture", "MixtureDensity", "StackedAutoencoder"]
