"""Standard output and standard error that cannot be written never stop the work."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys

import pytest
from trainees import environment

from genlab.system import output

FULL = "standard output was cut short: No space left on device"
SMALL = (
    "trainer=smoke trainer.max_steps=2 trainer.accelerator=cpu model.net.width=8 model.net.depth=1 data.limit=32 "
    "train.sample_every=0"
)
TWO = "trainer.devices=2 trainer.strategy=ddp"


def stream(descriptor, **options):
    """A text stream on a descriptor, like those of `output.steady`."""
    return io.TextIOWrapper(io.BufferedWriter(output.Dropping(descriptor, "w", closefd=False)), **options)


@pytest.mark.parametrize("case", ["no reader", "full disk", "closed"])
def test_writes_that_fail_are_dropped(case):
    if case == "no reader":
        reader, descriptor = os.pipe()
        os.close(reader)
    else:
        descriptor = os.open("/dev/full" if case == "full disk" else os.devnull, os.O_WRONLY)
    output_stream = stream(descriptor)
    if case == "closed":
        os.close(descriptor)
    print("a line\n" * 10_000, file=output_stream)
    print("another", file=output_stream, flush=True)
    assert (
        output_stream.buffer.raw.error.errno
        == {"no reader": errno.EPIPE, "full disk": errno.ENOSPC, "closed": errno.EBADF}[case]
    )


def test_a_full_pipe_that_does_not_block_is_waited_for():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    child = os.fork()
    if not child:
        total = 0
        while total < 500_000:
            total += len(os.read(reader, 1000))
        os._exit(0)
    output_stream = stream(writer)
    print("x" * 499_999, file=output_stream, flush=True)
    assert os.waitpid(child, 0)[1] == 0
    assert output_stream.buffer.raw.error is None


def test_streams_that_were_replaced_are_not_touched(capsys):
    before = sys.stdout
    output.steady()
    assert sys.stdout is before
    assert output.lost() is None


def shell(line, cwd=None, **env):
    """Run a line of shell in which $GENLAB is the command. Returns (status, standard output, standard error)."""
    python = f"{sys.executable} -m genlab"
    ended = subprocess.run(
        ["sh", "-c", line], env={**environment(), "GENLAB": python, **env}, cwd=cwd, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("line", "status", "printed"),
    [
        ("{ $GENLAB --help; echo $? >&2; } | head -1 >/dev/null", "0\n", None),
        ("$GENLAB --help >&-; echo $? >&2", "0\n", None),
        ("$GENLAB --help 2>&- | tail -1", "", "  genlab sample ckpt=outputs/DATE/RUN n=64\n"),
        ("$GENLAB --help >/dev/full; echo $? >&2", f"genlab: {FULL}\n1\n", None),
        ("PYTHONIOENCODING=ascii $GENLAB --help | head -3 | tail -1", "", "usage: genlab VERB key=value ?\n"),
    ],
)  # fmt: skip
def test_the_exit_status_is_that_of_the_work(line, status, printed):
    _, out, err = shell(line)
    assert err == status
    assert printed is None or out == printed


@pytest.mark.slow
def test_a_run_is_finished_without_its_output(tmp_path):
    """A fresh interpreter without standard error, whose standard output is full and cannot encode all characters."""
    words = f"{SMALL} hydra.run.dir={tmp_path}/run"
    shell("PYTHONIOENCODING=ascii $GENLAB train $WORDS >/dev/full 2>&-; echo $? >status", WORDS=words, cwd=tmp_path)
    assert (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "status").read_text() == "0\n"


@pytest.mark.slow
def test_a_run_of_two_ranks_is_finished_without_its_reader(tmp_path):
    """The reader of both streams goes away after the first line."""
    command = [sys.executable, "-m", "genlab", "train", *SMALL.split(), *TWO.split(), f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert (tmp_path / "run" / "results.json").exists()
