"""Caches of the causal nets, beyond what tests/contracts/test_causal.py asks: who has one, and when it is freed."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import zoo

from genlab.core import ImageSpec
from genlab.nets import PixelCNN
from genlab.nets.cached.base import Cache
from genlab.nets.causal.recompute import Recompute, RecomputeState

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY}))
def test_a_net_samples_from_its_cache_if_there_is_one_and_can_still_recompute(case):
    net = case.tiny().net
    file = sys.modules[type(net).__module__].__file__
    has = (Path(file).parents[1] / "cached" / Path(file).name).exists()
    assert isinstance(net.start(2, CPU), Cache if has else RecomputeState)
    assert isinstance(Recompute.start(net, 2, CPU), RecomputeState)


def test_a_net_imported_by_its_own_file_has_its_cache():
    code = "from genlab.nets.causal.pixelcnn import PixelCNN as N; print(N.start.__module__, N.rows_alike)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["genlab.nets.cached.base", "True"]


def test_a_subclass_has_the_cache_of_its_class():
    class Mine(PixelCNN):
        pass

    assert isinstance(Mine(spec=ImageSpec(1, 3, 3), width=4, depth=1).start(1, CPU), Cache)


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY}))
def test_a_dropped_cache_is_freed_at_once(case):
    """Nothing that a cache holds refers to the cache: its memory does not wait for the garbage collector."""
    net, previous = case.tiny().net, None
    state = net.start(2, CPU)
    for _ in range(2 * case.spec.width):
        _, state = net.step(previous, state)
        previous = torch.zeros(2, net.step_channels, dtype=torch.long)
    dropped = weakref.ref(state)
    gc.disable()
    try:
        del state
        assert dropped() is None
    finally:
        gc.enable()


def test_a_context_where_the_net_has_none_is_refused_and_a_missing_one_too():
    with pytest.raises(ValueError, match="context"):
        PixelCNN(spec=ImageSpec(1, 3, 3), width=4, depth=1).start(1, CPU, None, torch.zeros(1, 2, 1, 1))
    with pytest.raises(ValueError, match="context"):
        PixelCNN(spec=ImageSpec(1, 3, 3), width=4, depth=1, context_width=2).start(1, CPU)
