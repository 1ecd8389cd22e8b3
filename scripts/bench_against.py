"""Compare the sampling time of two versions of genlab, turn by turn, on the same images and the same noise.

    git worktree add ../before COMMIT
    python scripts/bench_against.py ../before [--models pixelcnn …] [--data 1x28x28] [--n 1 16 64] [--rounds 5]

Each version has a process of its own. In every round each draws n images once, in alternating order. The table has
the median over rounds of the ratio (this version / the other, in CPU seconds, so that other work on the machine matters
little), the range, and whether both drew the same images. Below 1, this version is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


def worker(model: str, data: str, depth: int, width: int, n: int) -> None:
    """Draw n images for every line of standard input; print CPU seconds and a sum of the images."""
    import torch
    from bench_parts import Case, _warm

    torch.set_num_threads(1)
    net = _warm(Case(model, data, width, depth, "cpu"))  # after a training step the allocator keeps its memory
    print("ready", flush=True)
    for _ in sys.stdin:
        generator, start = torch.Generator().manual_seed(0), time.process_time()
        images = net.sample(n, generator=generator)
        print(json.dumps([time.process_time() - start, int(images.sum())]), flush=True)


def ratios(trees: list[Path], case: tuple[Any, ...], rounds: int) -> tuple[list[float], bool]:
    """(seconds of the first tree / seconds of the second, for every round; whether the images are equal)."""
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
                measured.append(drawn[0][0] / drawn[1][0])
        return sorted(measured), equal
    finally:
        for process in processes:
            process.kill()


def _start(tree: Path, case: tuple[Any, ...]) -> subprocess.Popen[str]:
    """A worker that imports genlab, and the parts of the benchmark, from a tree."""
    path = os.pathsep.join([str(tree), str(tree / "scripts")])
    code = f"import sys; sys.path.append({str(HERE.parent)!r}); import bench_against as b; b.worker(*{case!r})"
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
    args = parser.parse_args()
    trees = [HERE.parents[1], args.other.resolve()]
    print("| model | image | n | median of this / other | range | same images |\n|---|---|---|---|---|---|")
    for model in args.models:
        for data in args.data:
            for depth, width in sizes(model, None, None):
                for n in args.n:
                    measured, equal = ratios(trees, (model, data, depth, width, n), args.rounds)
                    cells = [f"`{model}` {depth} x {width}", data, str(n), f"{measured[len(measured) // 2]:.3f}"]
                    cells += [f"{measured[0]:.3f} to {measured[-1]:.3f}", "yes" if equal else "NO"]
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
