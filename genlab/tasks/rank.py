"""One process of several, started by `launch.ranks`: `python -m genlab.tasks.rank module:function JSON`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from genlab.core import RequestError, RunError
from genlab.tasks import launch


def main() -> int:
    """Call the function; on failure tell the parent in one sentence and exit with status 2 or 1."""
    job, arguments = sys.argv[1:]
    module, _, name = job.partition(":")
    launch.stop_with_parent()
    try:
        getattr(importlib.import_module(module), name)(**json.loads(arguments))
        return 0
    except Exception as error:
        first = launch.report(error)  # the others fail because this one did: one report is enough
        expected = isinstance(error, (RequestError, RunError)) and not os.environ.get("GENLAB_DEBUG")
        if first and not expected:
            traceback.print_exc()
        return 2 if isinstance(error, RequestError) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a process group whose other members are gone could hang in its destructor
