"""Codes of autoencoders (dense, sparse, stochastic), and corruptions of their input."""

from genlab.codes.code import Coded
from genlab.codes.corruption import Gaussian, Masking, SaltPepper
from genlab.codes.penalised import KL, L1, L2, Dense
from genlab.codes.selective import Lifetime, TopK
from genlab.codes.spike_slab import SpikeSlab
from genlab.codes.support import support

__all__ = [
    "KL",
    "L1",
    "L2",
    "Coded",
    "Dense",
    "Gaussian",
    "Lifetime",
    "Masking",
    "SaltPepper",
    "SpikeSlab",
    "TopK",
    "support",
]
