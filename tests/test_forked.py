"""A forked process cannot be told from a fresh interpreter, but for the modules that it has imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import forked
import pytest

PROGRAM = """
import os, signal, sys; own = os.getpid()
print(os.getppid(), sys.argv, os.getcwd(), os.environ["FROM"], os.read(int(sys.argv[1]), 9), os.getsid(0) == own)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGHUP), __name__, sys.path[:3])
print(input(), file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("new_session", [False, True])
def test_all_that_a_process_is_given(tmp_path, new_session):
    seen = []
    forked._server()  # which takes nothing from the state that the caller is in below
    for popen in (forked.FRESH, forked.Popen):
        reading, writing = os.pipe()
        os.write(writing, b"through")
        os.close(writing)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        process = popen(
            [sys.executable, "-c", PROGRAM, str(reading)], pass_fds=[reading], start_new_session=new_session,
            cwd=tmp_path, env={"FROM": "here", "PYTHONPATH": "/somewhere"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, before)
        os.close(reading)
        seen.append((*process.communicate("a line\n"), process.returncode))
    assert seen[0] == seen[1]
    assert seen[1][1:] == ("a line\n", 3)


def test_a_signal_ends_it_and_its_children_are_forks_too():
    program = (
        "import os, subprocess, sys, time; child = 'import os, sys; print(os.getppid(), \"torch\" in sys.modules)'\n"
        "print(os.getpid(), subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout)\n"
        "sys.stdout.flush(); time.sleep(60)"
    )
    process = forked.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == f"{process.pid} {process.pid} True\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    process.stdout.close()
