"""Invertible layers, from which normalizing flows are built."""

from genlab.flows.actnorm import ActNorm
from genlab.flows.coupling import AffineCoupling
from genlab.flows.dequantise import Uniform, Variational
from genlab.flows.layer import Layer, Stack
from genlab.flows.logit import Logit
from genlab.flows.mixing import Mixing
from genlab.flows.mixture import MixtureCoupling
from genlab.flows.multi_scale import MultiScale
from genlab.flows.pad import Pad
from genlab.flows.split import Split
from genlab.flows.squeeze import Squeeze

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Layer",
    "Logit",
    "Mixing",
    "MixtureCoupling",
    "MultiScale",
    "Pad",
    "Split",
    "Squeeze",
    "Stack",
    "Uniform",
    "Variational",
]
