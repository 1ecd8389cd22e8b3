"""Shared by all tests: one thread, the model zoo on the path, GPU tests skipped without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# Three ranks must agree with one on any machine, also on one with two cores.
os.environ["GENLAB_OVERSUBSCRIBE"] = "1"

# The tests' tensors are tiny, and threads that wait for one another on a busy machine are a hundred times slower.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip GPU tests where there is none."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
