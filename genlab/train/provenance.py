"""Provenance of a number: package versions and the git commit, for versions.txt and every checkpoint."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pillow")


def genlab_version() -> str:
    """The installed version, or `source` when genlab is imported from a checkout that was never installed."""
    try:
        return version("genlab")
    except PackageNotFoundError:
        return "source"


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Git commit of the checkout that genlab is imported from, with `+changes` if files differ; None without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def versions() -> str:
    """The content of versions.txt: a line `name version` for each package."""
    lines = [f"genlab {genlab_version()}", f"commit {commit() or 'none'}", f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} none")
    return "\n".join(lines) + "\n"
