"""genlab uses the network only to download data that is asked for and for a tracker that is chosen.

In a process, every look-up of a host name and every connection to another machine is made an error. There genlab
trains, samples, evaluates and lists without an error. Then it is asked for data that must be downloaded, to see that
the error would have been raised.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from trainees import environment

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
    ["list", "model"], ["train", "trainer=smoke", *small, "hydra.run.dir=run"], ["sample", "ckpt=run", "n=1"],
    ["eval", "ckpt=run", "data.limit=20"], ["resume", "run=run", "trainer.max_steps=8"],
):
    assert cli.run(words) == 0, words
    assert not tried, (words, tried)
assert cli.run(["train", "data=mnist", "trainer=smoke", *small, "hydra.run.dir=other"]) == 2
assert tried, "a download was not noticed"
assert not os.path.exists("other")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_network_is_used_for_downloads_only(tmp_path):
    env = environment() | {"GENLAB_DATA": str(tmp_path / "data")}
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "WANDB_MODE"):
        env.pop(name, None)
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    messages = [line for line in process.stderr.splitlines() if line.startswith("genlab: ")]
    assert len(messages) == 1
    assert "unexpected" not in messages[0]
