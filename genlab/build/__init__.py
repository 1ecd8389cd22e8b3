"""From a config to a model, and from a checkpoint to a model: what may be built, and how files are read safely."""

from genlab.build.models import build, build_data, find_checkpoint, load, read_checkpoint, restore

__all__ = ["build", "build_data", "find_checkpoint", "load", "read_checkpoint", "restore"]
