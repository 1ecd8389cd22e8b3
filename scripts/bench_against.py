"""Compare the speed of two versions of genlab, turn by turn, on the same images and the same noise.

    git worktree add ../before COMMIT
    python scripts/bench_against.py ../before [--models pixelcnn …] [--data 1x28x28] [--n 1 16 64] [--rounds 5]
    python scripts/bench_against.py ../before --training --n 16

Each version has a process of its own. In every round each draws n images once, or with --training makes one step on a
batch of n images in the precision that it chooses for this machine, in alternating order. The table has the median over
rounds of the ratio (this version / the other, in CPU seconds, so that other work on the machine matters little), the
range, and whether both gave the same images (or the same weights, to four digits). Below 1, this version is faster.
With --training there are also the images per CPU second of both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def worker(model: str, data: str, depth: int, width: int, n: int, training: bool) -> None:
    """Draw or train on n images for every line of standard input; print CPU seconds and a sum of what came out."""
    import torch
    from bench_parts import Case, Step, _warm

    from genlab.train.plan import Plan

    torch.set_num_threads(1)
    case = Case(model, data, width, depth, "cpu")
    if training:
        net = case.build()
        step, x = Step(case, net, Plan.of(case.config().trainer).precision), case.images(n)
    else:
        net = _warm(case)  # after a training step the allocator keeps its memory
    print("ready", flush=True)
    for _ in sys.stdin:
        generator, start = torch.Generator().manual_seed(0), time.process_time()
        if training:
            step(x)
        else:
            images = net.sample(n, generator=generator)
        seconds = time.process_time() - start
        result = sum(p.detach().abs().sum().item() for p in net.parameters()) if training else int(images.sum())
        print(json.dumps([seconds, float(f"{result:.4g}") if training else result]), flush=True)


def measure(trees: list[Path], case: tuple[Any, ...], rounds: int) -> tuple[list[list[float]], bool]:
    """(seconds of the first and the second tree, for every round; whether both gave the same)."""
    processes = [_start(tree, case) for tree in trees]
    try:
        for process in processes:
            if process.stdout.readline().strip() != "ready":  # type: ignore[union-attr]
                raise SystemExit(f"{case} cannot be built by one of the versions")
        measured, equal = [], True
        for number in range(rounds + 1):
            drawn: dict[int, Any] = {}
            for index in (0, 1) if number % 2 else (1, 0):
                process: Any = processes[index]
                process.stdin.write("go\n")
                process.stdin.flush()
                drawn[index] = json.loads(process.stdout.readline())
            equal &= drawn[0][1] == drawn[1][1]
            if number:  # the first round warms up
                measured.append([drawn[0][0], drawn[1][0]])
        return measured, equal
    finally:
        for process in processes:
            process.kill()


def _start(tree: Path, case: tuple[Any, ...]) -> subprocess.Popen[str]:
    """A worker of this file that imports genlab, and the parts of the benchmark, from a tree."""
    path = os.pathsep.join([str(tree), str(tree / "scripts")])
    code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import bench_against as b; del sys.path[0]; "
    code += f"b.worker(*{case!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=tree, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def main() -> None:
    """Measure every case and print a Markdown table."""
    from bench import SIZES, sizes

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout of the other version")
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    parser.add_argument("--data", nargs="+", default=["1x28x28"])
    parser.add_argument("--n", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="a training step instead of sampling")
    args = parser.parse_args()
    trees = [HERE.parents[1], args.other.resolve()]
    speeds = " images/s of this, of the other |" if args.training else ""
    print(f"| model | image | n | median of this / other | range | same |{speeds}\n|{(6 + args.training) * '---|'}")
    for model in args.models:
        for data in args.data:
            for depth, width in sizes(model, None, None):
                for n in args.n:
                    seconds, equal = measure(trees, (model, data, depth, width, n, args.training), args.rounds)
                    ratios = [ours / theirs for ours, theirs in seconds]
                    cells = [f"`{model}` {depth} x {width}", data, str(n), f"{statistics.median(ratios):.3f}"]
                    cells += [f"{min(ratios):.3f} to {max(ratios):.3f}", "yes" if equal else "NO"]
                    if args.training:
                        cells.append(", ".join(f"{n / statistics.median(s):.1f}" for s in zip(*seconds, strict=True)))
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
