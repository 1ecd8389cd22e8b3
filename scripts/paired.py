"""Compare training settings: the same images, seeds and CPU time; bits per dimension of the validation split.

    python scripts/paired.py train docs/paired/cifar10.yaml [--seeds 0 1]   train the cells that are missing
    python scripts/paired.py                                                write the tables of docs/recipe.md

A file has a base, which is words of `genlab train`, and variants: names with words that replace those of the base
with the same key, or are added. A cell is one of them with one seed. It trains for `minutes` of CPU time on one core:
a short measurement chooses the number of steps, as `train.minutes` does, but by the process's clock, so that other
work on the machine matters little. Its result is a line of the file's twin FILE.jsonl. The test split is never read.
Several of these processes can share the cells: each takes seeds of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import OmegaConf

from genlab.system.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
FILES, PAGE = ROOT / "docs" / "paired", ROOT / "docs" / "recipe.md"
FIXED = ["trainer=cpu", "logger=none", "train.sample_every=0"]


def cell(words: str, seed: int, minutes: float) -> dict[str, Any]:
    """Train for `minutes` of CPU time; returns the line of the cell."""
    import torch

    from genlab.processes.preparation import check_config, prepare
    from genlab.processes.training import choose_length
    from genlab.request.compose import Request, split_hydra
    from genlab.train import batch_size, budget, precision
    from genlab.train.fit import Run, fit

    torch.set_num_threads(1)
    budget.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    request = Request("train", [*shlex.split(words), *FIXED, f"train.minutes={minutes}", f"seed={seed}"], "")
    config: Any = split_hydra(request.config())[0]
    plan = check_config(config)
    batch_size.settle(config, plan.accelerator)
    precision.settle(config, plan.accelerator)
    plan = check_config(config)
    prepared = prepare(config)
    with tempfile.TemporaryDirectory() as folder:
        settings: Any = OmegaConf.to_container(config)
        run = Run(prepared.model, prepared.data, settings, plan, Path(folder))
        start = time.process_time()
        choose_length(run, config)
        result = fit(run)
    return {
        "words": words, "seed": seed, "minutes": minutes, "cpu_minutes": round((time.process_time() - start) / 60, 2),
        "bits_per_dim": round(result.valid["bits_per_dim"], 4), "steps": result.step, "precision": run.plan.precision,
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
    }  # fmt: skip


def variants(table: Any) -> dict[str, str]:
    """{name: words of `genlab train`} of the base and the variants of a file."""

    def keyed(words: str) -> dict[str, str]:
        return {word.partition("=")[0]: word for word in words.split()}

    changes = {"base": "", **table.variants}
    return {name: " ".join((keyed(table.base) | keyed(words)).values()) for name, words in changes.items()}


def done(file: Path) -> list[dict[str, Any]]:
    """The lines of the cells that are trained."""
    lines = file.with_suffix(".jsonl")
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []


def train(file: Path, seeds: list[int]) -> None:
    """Train the missing cells, each in a process of its own."""
    table = OmegaConf.load(file)
    minutes = table.minutes
    for seed, words in itertools.product(seeds, variants(table).values()):
        if any((row["words"], row["seed"], row["minutes"]) == (words, seed, minutes) for row in done(file)):
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(cell, words, seed, minutes).result()
        print(json.dumps(row), flush=True)
        with file.with_suffix(".jsonl").open("a") as out:
            out.write(json.dumps(row) + "\n")


def tables() -> Iterator[str]:
    """A Markdown table for each file, the variants in the order of their gain."""
    for file in sorted(FILES.glob("*.yaml")):
        table, rows = OmegaConf.load(file), done(file)
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["minutes"] == table.minutes:
                found.setdefault(row["words"], {})[row["seed"]] = row
        names = variants(table)
        base = found.get(names["base"], {})
        if not base:
            continue
        yield f"`{file.stem}`, {table.minutes} minutes of CPU time. The base:\n"
        command = textwrap.wrap(f"genlab train {table.base}", 116, break_on_hyphens=False)
        yield "\n".join(["```bash", " \\\n  ".join(command), "```\n"])
        yield "| variant | bits/dim, seed by seed | against the base | steps | parameters | words |"
        yield "| --- | --- | --- | --- | --- | --- |"
        lines = []
        for name, all_words in names.items():
            cells_of = found.get(all_words, {})
            if not cells_of:
                continue
            values = [cells_of[seed]["bits_per_dim"] for seed in sorted(cells_of)]
            gains = [cells_of[seed]["bits_per_dim"] - base[seed]["bits_per_dim"] for seed in cells_of.keys() & base]
            gain = statistics.mean(gains) if gains else float("nan")
            first = next(iter(cells_of.values()))
            shown = ", ".join(f"{value:.4f}" for value in values)
            words = f"`{table.variants[name]}`" if name in table.variants else ""
            line = f"| {name} | {shown} | {gain:+.4f} | {first['steps']:,} | {first['parameters']:,} | {words} |"
            lines.append((gain, line))
        yield from (line for _, line in sorted(lines))
        yield ""


def main() -> None:
    """Train, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", nargs="?", choices=["train"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    args = parser.parse_args()
    if args.verb:
        train(args.file, args.seeds)
        return
    before, _, rest = PAGE.read_text().partition("<!-- paired:begin -->\n")
    _, _, after = rest.partition("<!-- paired:end -->")
    write_text(PAGE, f"{before}<!-- paired:begin -->\n{chr(10).join(tables())}<!-- paired:end -->{after}")


if __name__ == "__main__":
    main()
