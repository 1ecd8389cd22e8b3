"""genlab: a laboratory for generative image models with likelihoods that can be trusted.

>>> import genlab
>>> run = genlab.train(model="pixelcnn", data="mnist_mini", max_steps=200)  # or a run of the command line
>>> model = genlab.load(run)                # a run folder, a checkpoint file, or "zoo:mnist"
>>> images = model.sample(16, seed=0)       # integers (16, C, H, W)
>>> nats = model.log_prob(images)           # (16,)
>>> test = genlab.data(run).split("test")   # images and labels
"""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genlab.build import load
    from genlab.core import ImageSpec

__version__ = "0.1.0"
__all__ = ["ImageSpec", "__version__", "data", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import `load` and `ImageSpec` at first use: they import torch, and the command line installs handlers first."""
    if name == "load":
        from genlab.build import load

        return load
    if name == "ImageSpec":
        from genlab.core import ImageSpec

        return ImageSpec
    raise AttributeError(f"module 'genlab' has no attribute {name!r}")


def _package_and_function(name: str) -> Any:
    """A property of this module: the package `genlab.NAME`, which can be called as the function of `interface.py`."""

    class Callable(ModuleType):
        def __call__(self, *words: Any, **settings: Any) -> Any:
            return getattr(import_module("genlab.interface"), name)(*words, **settings)

    def get(front: ModuleType) -> ModuleType:
        package = import_module(f"genlab.{name}")
        if type(package) is ModuleType:
            package.__class__ = Callable
        return package

    return property(get, lambda front, package: None)  # the import system sets it; there is nothing to keep


class _Front(ModuleType):
    """The module genlab: `genlab.train(…)` and `genlab.data(…)` are calls, and packages of the same names exist."""

    data, train = _package_and_function("data"), _package_and_function("train")


sys.modules[__name__].__class__ = _Front

# Hydra 1.4 warns that 1.5 will refuse this parameter. pyproject.toml excludes 1.5.
warnings.filterwarnings("ignore", message="The version_base parameter", module="genlab")
