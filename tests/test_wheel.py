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

    def genlab(*words):
        return subprocess.run(
            [sys.executable, "-m", "genlab", *words], cwd=empty, env=env, check=True, capture_output=True, text=True
        ).stdout

    where = "import genlab; print(genlab.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True).stdout
    assert str(tmp_path) in found
    assert "data=mnist_mini" in genlab("list")
    assert "test bits/dim" in genlab("train", "trainer=smoke", "model.net.depth=1", "hydra.run.dir=run")
    assert "2 images" in genlab("sample", "ckpt=run", "n=2")
