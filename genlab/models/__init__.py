"""Model families. A family defines the likelihood, sampling and completion; its networks and heads are arguments."""

from genlab.models.autoencoder import Autoencoder
from genlab.models.autoregressive import Autoregressive
from genlab.models.classifier import ImageClassifier
from genlab.models.flow import Flow
from genlab.models.gan import GAN
from genlab.models.latent_gaussian import LatentGaussian
from genlab.models.mixture import GaussianMixture
from genlab.models.mixture_density import MixtureDensity
from genlab.models.ppca import PPCA
from genlab.models.stacked import StackedAutoencoder
from genlab.models.vqvae import VQVAE

__all__ = [
    "GAN",
    "PPCA",
    "VQVAE",
    "Autoencoder",
    "Autoregressive",
    "Flow",
    "GaussianMixture",
    "ImageClassifier",
    "LatentGaussian",
    "MixtureDensity",
    "StackedAutoencoder",
]
