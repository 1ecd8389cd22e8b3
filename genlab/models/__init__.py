"""Families: what owns an algorithm (likelihood, sampling, completion) and is given networks and heads."""

from genlab.models.autoencoder import Autoencoder
from genlab.models.autoregressive import Autoregressive
from genlab.models.classifier import ImageClassifier
from genlab.models.latent_gaussian import LatentGaussian
from genlab.models.ppca import PPCA
from genlab.models.stacked import StackedAutoencoder

__all__ = ["PPCA", "Autoencoder", "Autoregressive", "ImageClassifier", "LatentGaussian", "StackedAutoencoder"]
