"""`genlab` with a stopwatch: python gpu_child.py TIMES.json [--deterministic] VERB key=value …

TIMES.json gets the times (seconds, one clock) at which the process began and at which each training batch was asked
for. The learner waits for the device once a step, so the differences are the true durations of steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()


def main() -> int:
    """Run the verb and return its exit status."""
    file, *words = sys.argv[1:]
    if words[0] == "--deterministic":
        del words[0]
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
        deterministic = True
    else:
        deterministic = False
    import torch

    from genlab import cli
    from genlab.data import ImageData
    from genlab.system import signals

    signals.install()
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    batches: list[float] = []
    fetch = ImageData.training_batch

    def training_batch(self: ImageData, number: int) -> Any:
        batches.append(time.perf_counter())
        return fetch(self, number)

    ImageData.training_batch = training_batch  # type: ignore[method-assign]
    try:
        return cli.run(words)
    finally:
        Path(file).write_text(json.dumps({"began": BEGAN, "batches": batches}))


if __name__ == "__main__":
    sys.exit(main())
