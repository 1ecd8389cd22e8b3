"""genlab: a laboratory for generative image models with likelihoods that can be trusted.

>>> import genlab
>>> model = genlab.load("outputs/…")        # a run folder or a checkpoint file
>>> images = model.sample(16)               # integers (16, C, H, W)
>>> nats = model.log_prob(images)           # (16,)
"""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genlab.build import load
    from genlab.core import ImageSpec

__version__ = "0.1.0"
__all__ = ["ImageSpec", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` and `ImageSpec` at first use: they import torch, and the command line installs handlers first."""
    if name == "load":
        from genlab.build import load

        return load
    if name == "ImageSpec":
        from genlab.core import ImageSpec

        return ImageSpec
    raise AttributeError(f"module 'genlab' has no attribute {name!r}")


# Hydra 1.4 warns that 1.5 will refuse this parameter. pyproject.toml excludes 1.5.
warnings.filterwarnings("ignore", message="The version_base parameter", module="genlab")
