"""Sampling with rows captured as CUDA graphs beside sampling step by step: the same pixels, and how fast.

    python scripts/gpu_sampling.py OUT.json [--device cuda] [--n 64] [--quick]

Nets whose rows are all alike are captured (`rows_alike`). The weights are random, float32.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from bench_parts import Case, sync

SIZES = {"pixelcnn": (15, 128), "gated_pixelcnn": (10, 128), "row_lstm": (4, 64)}  # depth, width


@torch.no_grad()
def compare(case: Case, n: int) -> dict[str, Any]:
    """Draw n images both ways, twice each; the second time counts."""
    model = case.build().eval()
    for p in model.parameters():  # a fresh model may ignore the pixels drawn so far
        p.add_(0.05 * torch.randn_like(p))
    results: dict[str, tuple[torch.Tensor, float]] = {}
    for way, alike in (("captured", model.net.rows_alike), ("eager", False)):
        model.net.rows_alike = alike
        for _ in range(2):
            sync(case.device)
            start = time.perf_counter()
            x = model.sample(n, generator=torch.Generator().manual_seed(0))
            sync(case.device)
            results[way] = x, time.perf_counter() - start
    different = int((results["captured"][0] != results["eager"][0]).sum())
    seconds = {way: seconds for way, (_, seconds) in results.items()}
    return {**case.name, "n": n, "values": results["eager"][0].numel(), "different_values": different, **seconds}


def main() -> None:
    """Write a record for every net, as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    sizes = {"pixelcnn": (2, 8)} if args.quick else SIZES
    records = []
    for model, (depth, width) in sizes.items():
        records.append(compare(Case(model, "1x6x6" if args.quick else "3x32x32", width, depth, args.device), args.n))
        args.out.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
