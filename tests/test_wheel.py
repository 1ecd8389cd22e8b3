"""The wheel is all there is: unpacked elsewhere, it works without the repository, and without the network.

genlab uses the network only to download data that is asked for and for a tracker that is chosen. In a process, every
look-up of a host name and every connection to another machine is made an error. There the genlab of the wheel lists,
trains, samples, evaluates and resumes without an error. Then it is asked for data that must be downloaded, to see that
the error would have been raised.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

PROGRAM = """
import os, sys
tried = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        local = isinstance(address, (str, bytes)) or address[0] in ("127.0.0.1", "::1", "localhost")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        host = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        local = host in (None, "", "127.0.0.1", "::1", "localhost")
    elif event == "urllib.Request":
        local = False
    else:
        return
    if not local:
        tried.append((event, arguments))
        raise OSError("no network")
sys.addaudithook(watch)

import torch, torchvision, pytorch_lightning, hydra, wandb, sklearn, matplotlib  # none of them connects
from genlab import cli
torch.set_num_threads(1)
small = ["model.net.width=4", "model.net.depth=1", "model.net.feature_width=4"]
for words in (
    ["list"], ["train", "trainer=smoke", "trainer.max_steps=2", *small, "hydra.run.dir=run"],
    ["sample", "ckpt=run", "n=2"], ["eval", "ckpt=run", "data.limit=20"], ["resume", "run=run", "trainer.max_steps=3"],
):
    assert cli.run(words) == 0, words
    assert not tried, (words, tried)
assert cli.run(["train", "data=mnist", "trainer=smoke", *small, "hydra.run.dir=other"]) == 2
assert tried, "a download was not noticed"
assert not os.path.exists("other")
print(cli.__file__)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_wheel_works_from_an_empty_directory_and_uses_the_network_for_downloads_only(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, REPOSITORY]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("genlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        assert not [name for name in archive.namelist() if name.startswith(("tests", "scripts"))]
    zoo = sum(file.stat().st_size for file in (REPOSITORY / "zoo").iterdir())
    assert wheel.stat().st_size < 3_500_000 + zoo
    (tmp_path / "empty").mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PYTHONSAFEPATH": "1"}
    env["GENLAB_DATA"] = str(tmp_path / "data")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "WANDB_MODE"):
        env.pop(name, None)
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(command, cwd=tmp_path / "empty", env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    messages = [line for line in process.stderr.splitlines() if line.startswith("genlab: ")]
    assert len(messages) == 1
    assert "unexpected" not in messages[0]
    printed = process.stdout
    assert "data=mnist_mini" in printed
    assert "test bits/dim" in printed
    assert "2 images" in printed
    assert printed.splitlines()[-1] == f"{tmp_path}/installed/genlab/cli.py"
