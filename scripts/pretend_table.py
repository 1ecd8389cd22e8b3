"""docs/gpu.md: what was checked without a GPU, and the table of every model and operation on the pretend device.

    python scripts/pretend_table.py [FILE ...]

Minutes on one core; FILEs are tables that `tests/pretend_ops.py MODEL,MODEL FILE` has measured in parts. The text of
the page is here, the table is measured; tests/test_pretend.py insists on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

TEXT = """# The GPU

What ran on a GPU: [gpu-session.md](gpu-session.md#what-ran-on-an-nvidia-h200). Everything that can be tested
without a GPU is checked on a *pretend device* (`tests/pretend.py`): its tensors report another device, are
computed on the CPU, cannot be mixed with tensors of the CPU, as on CUDA, and count how often the host would wait.
`tests/test_pretend.py` runs it (torch >= 2.10), `python scripts/pretend_table.py` writes this page.

On this device, every model below runs every operation that it has, with a real Lightning Trainer, its callbacks and
checkpoints, and **every result is that of the CPU to the bit**: weights and optimiser after training, after a signal
and a resume, after a step that was not finite, pictures, samples and completions (with a generator of the CPU, of the
device, and none), features, reconstructions, evaluations. The learner does the resuming and has the guard: the table
shows which models are resumed, and one of each class of learner has a step that is not finite. Generators are used in
turn, and all three by the models that are resumed. Attention is computed by its formula there and on the CPU: the
CPU's fused kernel sums in another order. The tests take every net, head, family, code and corruption of this table
once.

## When the host waits

A number in the table counts waits: a value that is read, a result whose size depends on values, a mask as an index,
linear algebra that checks for success, a copy of memory that is not pinned. For training it is the largest number in
any step after the first; for other operations it is their total. Images have 5 rows and 60 values.

- **A training step waits once**, for the guard, which must decide if the step is skipped. EM (`gaussian_mixture em`)
  also reads which images each component has, and which cells are filled: its number of waits is the number of
  components plus three.
- **Sampling waits at most once** in autoregressive models, for any number of rows. Latent models, GANs and PCA do not
  wait at all. A flow with mixture couplings is inverted iteratively: after every 16 iterations each coupling checks
  if all values have converged.
- **Completing** also waits at most once if the known pixels come first. Otherwise particles are resampled when few of
  them have most of the weight. This is checked once in every weighted step: without the check, the whole state
  would be copied in every step. Each Langevin step of a flow waits once for each coupling; the table has
  {few} of the 200 steps.

## Float32

`precision=32` means full float32 on a GPU, too: training, evaluation, sampling and caches switch off TF32 (cuBLAS,
cuDNN) and the bfloat16 of oneDNN, and restore the previous setting (`genlab/system/device.py`). `eval.json` and
`results.json` record the precision. Under bf16-mixed the logits of every head, a GAN's scores, a classifier's logits
and the power iteration of spectral norm stay float32.

## Compiled

`compile=true` was run with inductor on the CPU, three steps and the test: `pixel_transformer` (without complex
numbers while it compiles) and `flow` (its couplings' networks). For a GAN with a gradient penalty and for models
without a network, it is an error.

## What this does not show

The pretend device does not test CUDA's kernels, their results, autocast, graph capture (with
`capture_error_mode="thread_local"`, so that NCCL's watchdog does not end it), NCCL, and speed. Numbers of a GPU
differ from a CPU's in the last bits.

`scripts/gpu_session.sh` tests these where there is a GPU: [gpu-session.md](gpu-session.md).

## The table

- train: waits of a step. resumed: a mark if it was. sample, top, some: waits to draw 5 images, to
  complete them from their top, and to complete them from scattered pixels (3 particles); the largest number over all
  generators. rest: waits of features, reconstructions and repairs.

| model | train | resumed | sample | top | some | rest | eval |
|---|---|---|---|---|---|---|---|
"""


def cells(rows: dict[str, Any]) -> list[str]:
    """A line of the table."""

    def most(*names: str) -> str:
        found = [row["syncs"] for name, row in rows.items() if name.startswith(names)]
        return str(max(found)) if found else "–"

    guard = 1
    step = max(rows["train"]["steps"][1:]) if "train" in rows else rows["loss and gradient"]["syncs"] + guard
    return [
        str(step), "yes" if "resume" in rows else "–", most("sample"), most("complete, top"), most("complete, some"),
        most("features", "reconstruct", "repair"), most("eval"),
    ]  # fmt: skip


def main() -> None:
    """Run, check, write."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pretend_ops import FEW
    from test_pretend import complaints
    from trainees import environment

    if len(sys.argv) > 1:
        found = {name: row for file in sys.argv[1:] for name, row in json.loads(Path(file).read_text()).items()}
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "table.json"
            command = [sys.executable, str(ROOT / "tests" / "pretend_ops.py"), "all", str(out)]
            subprocess.run(command, check=True, env=environment())
            found = json.loads(out.read_text())
    if wrong := complaints(found):
        raise SystemExit("\n".join(wrong))
    lines = [f"| {name} | {' | '.join(cells(devices['pretend']))} |" for name, devices in found.items()]
    count = sum(len(devices["pretend"]) for devices in found.values())
    text = TEXT.format(few=FEW) + "\n".join(lines) + f"\n\n{len(found)} models, {count} operations.\n"
    (ROOT / "docs" / "gpu.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
