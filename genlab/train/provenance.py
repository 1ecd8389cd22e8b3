"""Provenance of a number: package versions, the git commit and the machine, for versions.txt and every checkpoint."""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

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


def cpu_name() -> str:
    """The model of this machine's CPU, as far as its system says."""
    try:
        if platform.system() == "Darwin":
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine() or "unknown"


def gpu_name() -> str:
    """The names of this machine's GPUs, each once; none if there are none."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def versions() -> str:
    """The content of versions.txt: a line `name version` for each package, then the machine."""
    lines = [f"genlab {genlab_version()}", f"commit {commit() or 'none'}", f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} none")
    lines += [f"cpu {cpu_name()}", f"gpu {gpu_name()}", f"threads {torch.get_num_threads()}"]
    return "\n".join(lines) + "\n"
