"""A run folder is made by one process, locked by it, and released at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from trainees import config, outcome, same, trained

from genlab.core import RequestError
from genlab.processes import resume, run_folder, training
from genlab.processes.run_folder import new_folder
from genlab.processes.run_lock import NAME, lock_descriptors, locked


def test_sixteen_at_once_get_sixteen_folders(tmp_path):
    made = []
    start = threading.Barrier(16)

    def make():
        start.wait()
        made.append(new_folder(tmp_path / "out" / "12-00-00-a-b", or_next=True))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16
    assert {folder.name for folder in made} == {"12-00-00-a-b", *(f"12-00-00-a-b-{i}" for i in range(2, 17))}


def test_runs_begun_in_the_same_second_have_folders_of_their_own(tmp_path):
    for _ in range(2):
        training.run(config(trainer__max_steps=2), tmp_path / "run", "genlab train", or_next=True)
    same(outcome(tmp_path / "run"), outcome(tmp_path / "run-2"))
    with pytest.raises(RequestError, match="already holds a run"):
        trained(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == ["run", "run-2"]


def test_a_folder_that_is_there_and_empty_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("of the batch system")
    trained(tmp_path / "run", trainer__max_steps=1)
    assert (tmp_path / "run" / "log.txt").read_text() == "of the batch system"


@pytest.mark.parametrize("what", ["train", "resume"])
def test_a_folder_in_use_is_refused(tmp_path, what):
    folder = tmp_path / "run"
    if what == "resume":
        trained(folder, trainer__max_steps=1)
    else:
        folder.mkdir()
    with locked(folder):
        before = sorted(os.listdir(folder))
        with pytest.raises(RequestError, match=r"is in use: .*genlab resume run="):
            trained(folder) if what == "train" else resume.run(
                folder, ["trust=[trainees]", "trainer.max_steps=2"], "genlab resume"
            )
        assert sorted(os.listdir(folder)) == before
    assert NAME not in os.listdir(folder)


def test_a_run_holds_its_folder_to_its_end(tmp_path, monkeypatch):
    conclude = training.conclude

    def looked_at(folder, *rest):
        assert len(lock_descriptors()) == 1
        with pytest.raises(RequestError, match="is in use"):
            resume.run(folder, ["trust=[trainees]"], "genlab resume")
        return conclude(folder, *rest)

    monkeypatch.setattr(training, "conclude", looked_at)
    trained(tmp_path / "run", trainer__max_steps=1)
    assert not lock_descriptors()
    assert NAME not in os.listdir(tmp_path / "run")


def test_the_lock_of_a_killed_process_locks_nothing_but_its_children_keep_it(tmp_path):
    """The lock file stays; the lock ends with the last process that holds it."""
    program = (
        "import os, sys, subprocess; from pathlib import Path\n"
        "from genlab.processes.run_lock import lock_descriptors, locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=lock_descriptors(), stdout=-3, stderr=-3)\n"
        "    print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (tmp_path / NAME).exists()
    with pytest.raises(RequestError, match="is in use"), locked(tmp_path):
        pass
    os.kill(int(ended.stdout), 9)
    while os.path.exists(f"/proc/{int(ended.stdout)}/fd") and os.listdir(f"/proc/{int(ended.stdout)}/fd"):
        pass
    with locked(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()


def test_a_folder_that_cannot_be_written_is_removed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.provenance, "versions", full)
    with pytest.raises(RequestError, match="cannot be written: No space left"):
        trained(tmp_path / "run")
    assert not (tmp_path / "run").exists()
