"""genlab: a laboratory for generative image models, with numbers that can be trusted.

>>> import genlab
>>> model = genlab.load("outputs/…")        # a run folder or a checkpoint file
>>> images = model.sample(16)               # integers (16, C, H, W)
>>> nats = model.log_prob(images)           # (16,)
"""

import warnings

from genlab.build import load
from genlab.core import ImageSpec

__version__ = "0.1.0"
__all__ = ["ImageSpec", "__version__", "load"]

# Hydra 1.4 warns of what 1.5 will refuse, which pyproject.toml excludes; that a config cannot name just any target is
# build.py's business.
warnings.filterwarnings("ignore", message=r"(The version_base parameter|hydra\.utils\.instantiate)", module="genlab")
