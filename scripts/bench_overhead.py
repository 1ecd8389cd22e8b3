"""What `genlab train` costs beside the bare loop: Lightning, the learner's guard, logging, data, the averaged weights.

Both train the same model on the same images in the same precision, step by step in turn, so that a busy machine slows
both alike. Apart from scripts/bench_parts.py because importing Lightning takes seconds and a hundred megabytes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_parts import Case, Step, summary, sync
from omegaconf import OmegaConf

from genlab.processes.preparation import prepare
from genlab.train.fit import fit
from genlab.train.plan import Plan
from genlab.train.run import Run


def overhead(case: Case, batch: int, steps: int) -> list[dict[str, Any]]:
    """Images per second of `genlab train` and of the bare loop: same model, data and precision, step by step in turn.

    The bare step runs inside the call by which Lightning asks for the next batch, and is taken out of that period.
    """
    config = case.config(
        "data=mnist_mini", f"data.batch_size={batch}", "data.limit=640", f"trainer.max_steps={steps}",
        "train.sample_every=0", f"train.valid_every={steps}", f"train.checkpoint_every={steps}",
    )  # fmt: skip
    prepared = prepare(config)
    data, model = prepared.data, prepared.model
    plan = Plan.of(config.trainer)
    bare = Step(case, Case(case.model, "1x28x28", case.width, case.depth, case.device).build(), plan.precision)
    real: list[float] = []
    loop: list[float] = []
    fetch, end = data.training_batch, 0.0

    def training_batch(number: int) -> Any:
        nonlocal end
        sync(case.device)
        start = time.perf_counter()
        if end:
            real.append(start - end)
        bare(x)
        sync(case.device)
        end = time.perf_counter()
        loop.append(end - start)
        return fetch(number)

    x = data.training_batch(0).images.to(case.device)
    data.training_batch = training_batch
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        card = {"config": OmegaConf.to_yaml(config, resolve=True), "spec": asdict(data.spec)}
        settings: Any = OmegaConf.to_container(config)
        fit(Run(model, data, settings, plan, Path(folder), card))
    real, loop = real[5:], loop[5 : 5 + len(real[5:])]  # the first steps allocate
    record = {
        **case.name, "batch": batch, "precision": plan.precision,
        "images_per_second": summary([batch / t for t in real]),
        "bare_images_per_second": summary([batch / t for t in loop]),
        "overhead": statistics.median(real) / statistics.median(loop) - 1,
    }  # fmt: skip
    return [record]
