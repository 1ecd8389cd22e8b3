"""`genlab resume run=DIR [trainer.…=…] [train.…=…]`: continue a run in its folder, as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

from genlab.core import RequestError
from genlab.processes import resume
from genlab.request.compose import Request


def command(request: Request) -> int:
    """Resume the run that `run=` names; returns the exit status. All other words are changes to its config."""
    folders = [word.partition("=")[2] for word in request.overrides if word.startswith("run=")]
    if len(folders) != 1 or not folders[0] or request.sweep:
        raise RequestError("genlab resume needs run=DIR, the folder that `genlab train` wrote")
    overrides = [word for word in request.overrides if not word.startswith("run=")]
    resume.run(Path(folders[0]).expanduser(), overrides, request.command)
    return 0
