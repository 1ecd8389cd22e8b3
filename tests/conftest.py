"""Shared by all tests: one thread, the model zoo on the path, GPU tests skipped without one, forked processes."""

from __future__ import annotations

import os
import pickle
import sys
from copy import copy, deepcopy
from pathlib import Path

# The tests' tensors are tiny, and threads that wait for one another on a busy machine are a hundred times slower. Set
# before torch is imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Three ranks must agree with one on any machine, also on one with two cores.
os.environ["GENLAB_OVERSUBSCRIBE"] = "1"


LONG = tuple(f"tests/test_{name}.py" for name in ("pretend", "wheel", "gpu_session", "bench", "faults", "output"))


def pytest_collection_modifyitems(items):
    """Skip GPU tests where there is none. The longest tests come first, so that none is left over at the end.

    torch is imported here, because the process that only distributes tests to others never comes here.
    """
    import torch

    torch.set_num_threads(1)
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def forked():
    """Python processes that tests start have their imports done: see forked.py."""
    import forked

    with pytest.MonkeyPatch.context() as patch:
        for name, replacement in forked.places().items():
            patch.setattr(name, replacement)
        yield


@pytest.fixture(autouse=True, scope="session")
def composed_once():
    """Of a request Hydra composes three configs, a tenth of a second each. Two of them are what the request is compared
    with, the defaults of its verb and its choices alone: these are composed once for all tests.
    """
    from hydra.core.hydra_config import HydraConfig

    from genlab.request.compose import Request

    check, compose, memory = Request.check, Request._compose, {}

    def checked(self, overrides):
        self.asked = overrides
        config = check(self, overrides)
        return deepcopy(config) if any(config is each for each in memory.values()) else config

    def composed(self, overrides):
        if overrides is getattr(self, "asked", overrides) or len(self.folders) > 1:
            return compose(self, overrides)
        key = self.verb, self.folders[0], *overrides
        if key not in memory:
            memory[key] = compose(self, overrides)
        HydraConfig.instance().set_config(memory[key])
        return memory[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "check", checked)
        patch.setattr(Request, "_compose", composed)
        yield


@pytest.fixture(autouse=True, scope="session")
def files_read_once():
    """Hydra reads and parses two dozen files for every config. Here each is read once, until it changes."""
    from hydra._internal.config_repository import ConfigRepository

    load, memory = ConfigRepository.load_config, {}

    def loaded(self, config_path):
        folders = [source.path for source in self.sources]
        files = [Path(folder) / f"{config_path.removesuffix('.yaml')}.yaml" for folder in folders if folder]
        states = [file.stat() for file in files if file.is_file()]
        key = config_path, *folders, *((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)
        if key not in memory:
            memory[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(memory[key])  # Hydra changes what it gets

    def copied(self, memo):
        repository = copy(self)
        repository.sources = list(self.sources)
        return repository

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", loaded)
        patch.setattr(ConfigRepository, "__deepcopy__", copied, raising=False)
        yield


@pytest.fixture
def fresh(monkeypatch):
    """Python processes of this test are fresh interpreters."""
    import forked

    monkeypatch.setattr("subprocess.Popen", forked.FRESH)
