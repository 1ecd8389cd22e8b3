"""One process of several, started by `launch.ranks`: `python -m genlab.processes.rank module:function JSON`."""

from __future__ import annotations

import importlib
import json
import os
import sys

from genlab.system import output, signals


def main() -> int:
    """Call the function. On failure, report the reason to the parent, and return the exit status 2 or 1."""
    with signals.patiently():  # before the import of torch, which takes seconds
        signals.release()
        output.steady()
        from genlab.core import Interrupted, RequestError
        from genlab.processes import launch

        job, arguments = sys.argv[1:]
        module, _, name = job.partition(":")
        launch.stop_with_parent()
        try:
            getattr(importlib.import_module(module), name)(**json.loads(arguments))
            return 0
        except signals.Stopped as stop:  # of a job that has nothing to save
            launch.report_failure(Interrupted(str(stop), stop.number))
            return 128 + stop.number
        except Exception as error:
            launch.report_failure(error)
            return 2 if isinstance(error, RequestError) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a process group whose other members are gone could hang in its destructor
