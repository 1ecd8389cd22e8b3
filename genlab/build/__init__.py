"""Build models from configs and checkpoints. Only permitted classes are built, and files are read safely."""

from genlab.build.models import build, build_data, find_checkpoint, load, read_checkpoint, restore

__all__ = ["build", "build_data", "find_checkpoint", "load", "read_checkpoint", "restore"]
