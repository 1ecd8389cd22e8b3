"""The zoo: trained models that come with genlab. `ckpt=zoo:mnist` works wherever a checkpoint is asked for.

`zoo/NAME.ckpt` holds the averaged weights of a run, and its config. `zoo/SHA256SUMS` holds the hash of every file, so
that a damaged or exchanged one is noticed; `sha256sum -c SHA256SUMS` checks them all. `zoo/README.md` says what each
is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from genlab.core import RequestError, nearest

PREFIX = "zoo:"


def zoo_folder() -> Path:
    """Beside the package in a checkout, in the package if it is installed."""
    package = Path(__file__).resolve().parents[1]
    return next(
        (each for each in (package.parent / "zoo", package / "zoo") if (each / "SHA256SUMS").is_file()), package
    )


def sums() -> dict[str, str]:
    """Name -> SHA-256 of its file, in hexadecimal; {} without a zoo."""
    file = zoo_folder() / "SHA256SUMS"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.split() for line in lines if line.strip())
    return {name.removesuffix(".ckpt"): digest for digest, name in pairs}


def from_zoo(name: str) -> Path:
    """The file of a model of the zoo. Raises RequestError for an unknown name and for a file with another hash."""
    known = sums()
    if name not in known:
        raise RequestError(f"ckpt={PREFIX}{name} is not in the zoo: {nearest(name, known) if known else 'it is empty'}")
    path = zoo_folder() / f"{name}.ckpt"
    if not path.is_file():
        raise RequestError(f"ckpt={PREFIX}{name}: {path} is missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != known[name]:
        raise RequestError(f"ckpt={PREFIX}{name}: {path} is not the published file, its SHA-256 differs; replace it")
    return path
