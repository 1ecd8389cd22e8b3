"""Files that are whole or absent, and checkpoints that need nothing else.

A file is written under a temporary name beside its destination, flushed to the disk and renamed: a kill at any moment
leaves the previous version. Checkpoints hold tensors and primitives only and are read with `weights_only=True`: one
from a stranger can compute but not execute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from genlab.core import RequestError, RunError


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` when the block ends well and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or absent."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or absent."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RequestError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch raises a different one for each way in which a file can be broken
        raise RequestError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, whole or absent, without pickled objects."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically; a full disk is one sentence, and the previous checkpoint is still there."""
        try:
            with atomically(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError when a write falls short
            raise RunError(f"could not write {path}: {error}") from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tensors and primitives, on the CPU."""
        return read(Path(path))
