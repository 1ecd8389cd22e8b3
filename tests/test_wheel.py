"""The wheel is all there is: unpacked elsewhere, it lists, trains and samples without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_wheel_works_from_an_empty_directory(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(REPOSITORY),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("genlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        assert not [name for name in archive.namelist() if name.startswith(("tests", "scripts"))]
    assert wheel.stat().st_size < 3_500_000
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}

    def python(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=empty, env=env, check=True, capture_output=True, text=True
        ).stdout

    assert "data=mnist_mini" in python("-m", "genlab", "list")
    train = ["train", "trainer=smoke", "model.net.depth=1", "train.sample_every=0", "hydra.run.dir=run"]
    program = f"import genlab.cli as c; print(c.__file__, c.run({train}), c.run(['sample', 'ckpt=run', 'n=2']))"
    printed = python("-c", program)
    assert f"{tmp_path}/installed/genlab/cli.py 0 0" in printed
    assert "test bits/dim" in printed
    assert "2 images" in printed
