"""Put the averaged weights of a finished run into the zoo (genlab/build/zoo.py).

    python scripts/make_zoo.py RUN_FOLDER NAME     zoo/NAME.ckpt and NAME.json, then SHA256SUMS and README.md
    python scripts/make_zoo.py                     SHA256SUMS and README.md alone

A file has the weights, the config and the hashes of the data, no state of the optimiser. At most 4 MB a file and 25 MB
in all. NAME.json holds what the run reported of the test split, which `genlab eval ckpt=zoo:NAME` must repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from models_table import collect

from genlab.build import find_checkpoint
from genlab.build.untrusted import checkpoint
from genlab.measure.bits import Result
from genlab.system.atomic import atomically, write_json, write_text

ZOO = Path(__file__).resolve().parent.parent / "zoo"
MOST, MOST_IN_ALL = 4_000_000, 25_000_000  # bytes
KEPT = ("epoch", "global_step", "pytorch-lightning_version", "genlab")
HEAD = """# The zoo

Trained models that come with genlab: averaged weights, a config, and the hashes of the data. `ckpt=zoo:NAME` works with
every verb, and `genlab eval ckpt=zoo:NAME` repeats the number in the table. `sha256sum -c SHA256SUMS` checks the files.
`python scripts/make_zoo.py RUN NAME` adds one.

| `ckpt=` | model | data | on test, bits/dim | parameters | MB | trained by |
| --- | --- | --- | --- | --- | --- | --- |
"""


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The averaged weights; the raw ones if none were averaged."""
    ema = {name: value for name, value in state.items() if name.startswith("ema.")}
    return ema or {name: value for name, value in state.items() if name.startswith("model.")}


def add(run: Path, name: str) -> None:
    """Write NAME.ckpt and NAME.json."""
    content = checkpoint(find_checkpoint(run))
    small = {key: content[key] for key in KEPT} | {"state_dict": averaged(content["state_dict"])}
    with atomically(ZOO / f"{name}.ckpt") as temporary:
        torch.save(small, temporary)
    write_json(ZOO / f"{name}.json", collect(run, None))


def index() -> None:
    """Write SHA256SUMS and README.md. Exits with a sentence if a file is too large."""
    files = sorted(ZOO.glob("*.ckpt"))
    sizes = {file: file.stat().st_size for file in files}
    if sizes and (max(sizes.values()) > MOST or sum(sizes.values()) > MOST_IN_ALL):
        raise SystemExit(f"a file of the zoo has at most {MOST:,} bytes, and all together {MOST_IN_ALL:,}: {sizes}")
    rows, digests = [], []
    for file in files:
        entry = json.loads(file.with_suffix(".json").read_text())
        digests.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}")
        test = entry["test"]
        value = str(Result(**test)) if "bits_per_dim" in test else "no likelihood"
        cells = (
            f"`zoo:{file.stem}`", f"`{entry['model']}`", f"`{entry['data']}`", value, f"{entry['parameters']:,}",
            f"{sizes[file] / 1e6:.1f}", f"`{entry['command']}`",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    write_text(ZOO / "SHA256SUMS", "".join(f"{line}\n" for line in digests))
    write_text(ZOO / "README.md", HEAD + "".join(f"{row}\n" for row in rows))


def main() -> None:
    """Add a run if one is given; then the list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("name", nargs="?")
    args = parser.parse_args()
    if args.run:
        if not args.name:
            parser.error("give the run and its name in the zoo")
        add(args.run, args.name)
    index()


if __name__ == "__main__":
    main()
