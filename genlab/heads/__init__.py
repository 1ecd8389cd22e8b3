"""Heads: distributions of the values of a step, given features. Each has its own projection and samples integers."""

from genlab.heads.bernoulli import Bernoulli
from genlab.heads.categorical import Categorical
from genlab.heads.conditional_categorical import ConditionalCategorical
from genlab.heads.gaussian import GaussianFixed, GaussianFull, GaussianLearned
from genlab.heads.independent_categorical import IndependentCategorical
from genlab.heads.logistic import Logistic
from genlab.heads.logistic_mixture import LogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "ConditionalCategorical",
    "GaussianFixed",
    "GaussianFull",
    "GaussianLearned",
    "IndependentCategorical",
    "Logistic",
    "LogisticMixture",
]
