"""Measure the speed of training, sampling and the learner on this machine, as ratios that compare between machines.

    python scripts/bench.py [--models pixelcnn pixel_transformer:attention=local_1d] [--data 1x28x28 3x32x32]
        [--n 1 16 64 256] [--width 32 128] [--depth 15] [--quick] …

Without --width and --depth every model is measured at the sizes in SIZES. After a colon, keywords of its net.

Seconds depend on the machine and on what else it does. So training is also given as a share of the machine's own speed
of matrix products. Sampling is also given in forward passes of the same batch, as a speed-up over recomputation (T
forward passes), and as a multiple of the arithmetic of one forward pass at the speed of matrix products. Tables go to
the terminal, everything to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from bench_parts import BATCH, Case, ceilings, memory, sampling, training
from rich.console import Console
from rich.table import Table

PARTS = ("memory", "ceilings", "training", "sampling", "overhead")
# Depth x width of every model; those of the first three are the ones other projects were measured at.
SIZES = {
    "pixelcnn": ((15, 32), (15, 128)),
    "gated_pixelcnn": ((10, 128),),
    "pixel_transformer": ((8, 64),),
    "pixel_transformer:attention=local_1d": ((8, 64),),
    "pixel_transformer:attention=local_2d": ((8, 64),),
    "row_lstm": ((4, 64),),
    "diagonal_bilstm": ((4, 64),),
    "pixelcnnpp": ((2, 64),),
    "pixelsnail": ((2, 64),),
    "made": ((2, 512),),
}


def arguments() -> argparse.Namespace:
    """The command line. With --quick everything takes seconds, and the numbers mean nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", default=list(SIZES), help="NAME or NAME:keyword=value,…")
    parser.add_argument("--data", nargs="+", default=["1x28x28", "3x32x32"], help="image shapes CxHxW, 256 levels")
    parser.add_argument("--n", nargs="+", type=int, default=[1, 16, 64, 256], help="images sampled together")
    parser.add_argument("--width", nargs="+", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--batch", type=int, default=BATCH, help="images of a training step")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; 1 where other work holds the other cores")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which median and range are shown")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does every part run?")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    args.ceiling = 8192 if args.device == "cuda" else 1024  # size of the matrices
    args.steps = 40
    if args.quick:
        args.data, args.n, args.width, args.depth, args.rounds = ["1x6x6"], [2], [8], 2, 1
        args.ceiling, args.batch, args.steps = 64, 4, 12
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts asked for, a record each."""
    cases = [
        Case(model, data, width, depth, args.device)
        for model in args.models
        for data in args.data
        for depth, width in sizes(model, args.depth, args.width)
    ]
    found: dict[str, Any] = {"machine": machine(args.device)}
    if "memory" in args.parts:  # first: on Linux a child's peak is at least what its parent held when it was started
        uses = [("sampling", max(args.n)), ("training", args.batch)]
        start = get_context("fork" if args.quick else "spawn")  # a fork starts at once, but with its parent's memory
        runs = [(case, *use) for case in cases if case.data == args.data[-1] for use in uses]
        found["memory"] = [_alone(start, memory, *run) for run in runs]
    ceiling = found["ceilings_flops"] = ceilings(args.device, args.ceiling, 3 * args.rounds)
    smallest = [case for i, case in enumerate(cases) if case.model not in {c.model for c in cases[:i]}]
    jobs = {
        "training": [(training, case, args.batch, args.rounds, ceiling) for case in cases],
        "sampling": [(sampling, case, n, args.rounds, ceiling, positions(n)) for case in cases for n in args.n],
        "overhead": [(_overhead, replace(case, data="1x28x28"), args.batch, args.steps) for case in smallest],
    }
    for part in (part for part in jobs if part in args.parts):
        found[part] = []
        for run, *given in jobs[part]:
            found[part] += run(*given)
            args.out.write_text(json.dumps(found, indent=2) + "\n")  # so that a later failure loses nothing
    return found


def sizes(model: str, depth: int | None, widths: list[int] | None) -> list[tuple[int, int]]:
    """(depth, width) pairs to measure a model at: those asked for, else those of SIZES."""
    usual = SIZES.get(model) or SIZES.get(model.split(":")[0], ((4, 64),))
    if widths:
        return [(depth or usual[0][0], width) for width in widths]
    return [(depth or usual_depth, width) for usual_depth, width in usual]


def positions(n: int) -> int:
    """At how many of its steps recomputation of n images is timed: a forward pass of many is already an average."""
    return max(2, 12 * 16 // max(n, 16))


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), platform.processor())
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load": os.getloadavg()[0],
    }


def show(found: dict[str, Any]) -> None:
    """Tables: medians, with the range behind them."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    m = found["machine"]
    console.print(f"{m['gpu'] or m['cpu']}, torch {m['torch']}, {m['threads']} CPU threads, load {m['load']:.1f}")
    for name, flops in found["ceilings_flops"].items():
        console.print(f"matrix product {name}: {_range(flops, 1e-9)} GFLOP/s")
    for part, columns in COLUMNS.items():
        if records := found.get(part):
            table = Table(title=part, title_justify="left")
            for title in columns:
                table.add_column(title, justify="right")
            for record in records:
                table.add_row(*(cell(record) for cell in columns.values()))
            console.print(table)


def _range(values: dict[str, float], scale: float = 1.0) -> str:
    middle, low, high = (f"{scale * values[k]:.3g}" for k in ("median", "low", "high"))
    return f"{middle} ({low}-{high})"


def _model(r: dict[str, Any]) -> str:
    return f"{r['model']} {r['depth']}x{r['width']}, {r['data']}"


COLUMNS: dict[str, dict[str, Any]] = {
    "training": {
        "model": _model,
        "batch": lambda r: str(r["batch"]),
        "precision": lambda r: r["precision"],
        "images/s": lambda r: _range(r["images_per_second"]),
        "MFLOP/image": lambda r: f"{r['flops_per_image'] / 1e6:.0f}",
        "% of ceiling": lambda r: _range(r["share_of_ceiling"], 100),
    },
    "sampling": {
        "model": _model,
        "n": lambda r: str(r["n"]),
        "ms": lambda r: _range(r["seconds"], 1e3),
        "x recomputation": lambda r: _range(r["speedup"]),
        "forward passes": lambda r: _range(r["forward_passes"]),
        "x floor": lambda r: _range(r["times_floor"]),
        "lower half": lambda r: _range(r["half_completion"]),
    },
    "memory": {
        "model": _model,
        "of": lambda r: f"{r['what']} {r['n']}",
        "peak MiB": lambda r: f"{r['peak_bytes'] / 2**20:.0f}",
        "before it MiB": lambda r: f"{r['before_bytes'] / 2**20:.0f}",
    },
    "overhead": {
        "model": _model,
        "batch": lambda r: str(r["batch"]),
        "precision": lambda r: r["precision"],
        "genlab train images/s": lambda r: _range(r["images_per_second"]),
        "bare loop": lambda r: _range(r["bare_images_per_second"]),
        "overhead %": lambda r: f"{100 * r['overhead']:.1f}",
    },
}


def _overhead(*given: Any) -> list[dict[str, Any]]:
    from bench_overhead import overhead  # Lightning's memory is not to be counted as a model's

    return overhead(*given)


def _alone(start: BaseContext, run: Any, *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=start) as pool:
        return pool.submit(run, *args).result()


def main() -> None:
    """Measure, write, show."""
    args = arguments()
    show(measure(args))


if __name__ == "__main__":
    main()
