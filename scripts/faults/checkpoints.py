"""Mutated checkpoints through sample, eval and resume: each is read correctly or refused in one sentence.

Bytes: bits flipped, parts cut off, parts repeated, entries of the zip swapped, renamed, left out, blown up. Content:
keys missing, values of another type, huge or negative numbers, tensors of another shape or dtype or full of NaN, and
the text of the config edited, also as a hostile author would. If a file with damaged bytes can still be read, it must
give what the undamaged file gives. NaN weights must be refused. A refusal must leave nothing behind.

The files are those of tests/fixtures. 500 take one core 4 minutes.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import FIXTURES, Tally, call, fault, main, preload, tree, workplace
from omegaconf import OmegaConf

ODD: list[Any] = [None, True, -1, 0, 3, 10**7, 2**63, 10**400, math.nan, math.inf, 0.5, "", "text", "${seed}", [], {}]
ODD += [[1, 2], {"a": 1}, "a" * 5000, "\x00", "ü\n", torch.zeros(3), torch.tensor(math.nan)]
# What a hostile config may try; `planted` would appear in the working folder.
PLANT = {"_target_": "os.mkdir", "path": "planted"}
HOSTILE: list[Any] = [
    PLANT, {"_target_": "genlab.cli.os.mkdir", "path": "planted"}, {"_target_": "pathlib.Path", "_args_": ["x"]},
    {"_target_": "genlab.data.files.fetch"}, {"_target_": "genlab.models.GAN"}, {"_target_": 3}, {"_target_": "."},
    {"_target_": "genlab"}, {"_target_": "genlab.nets.PixelCNN", "_args_": [1, 2, 3]}, "${oc.env:HOME}", "???",
    "${oc.create:{_target_:os.mkdir,path:planted}}", {"_partial_": 7}, {"_recursive_": []}, {"_convert_": "odd"},
]  # fmt: skip
TEXTS = ["", "[]", "3", "a: [", "model: null", "model: {}", "\x00", "a: &a [x]\nb: *a", 'model: "\\x24{oc.env:HOME}"']
ALIASES = [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(8)]  # nine levels, nine times each
TEXTS += ["\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *ALIASES])]


@dataclass(frozen=True)
class Mutant:
    """The bytes of a changed file, how they were changed, and which outcome is right."""

    what: str
    content: bytes
    damaged: bool = False  # its bytes are: if it is read at all, then as the undamaged file
    refused: bool = False  # only a refusal is right


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a nested value, at any depth."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    return [place for key in keys for place in [(node, key), *places(node[key])]]


def flipped(content: bytes, rng: random.Random) -> Mutant:
    """A few bits anywhere, half the time near the end, where a zip keeps its index."""
    changed, n = bytearray(content), rng.choice((1, 1, 2, 8, 64))
    low = rng.choice((0, max(0, len(content) - 6000)))
    for _ in range(n):
        changed[rng.randrange(low, len(content))] ^= 1 << rng.randrange(8)
    return Mutant(f"{n} bits flipped", bytes(changed), damaged=True)


def cut(content: bytes, rng: random.Random) -> Mutant:
    """Only the beginning, only the end, the middle left out, nothing, or the beginning once more at the end."""
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    kept = rng.choice((content[:a], content[b:], content[:a] + content[b:], b"", content + content[:a]))
    return Mutant(f"{len(kept)} of {len(content)} bytes", kept, damaged=True)


def rezipped(content: bytes, rng: random.Random) -> Mutant:
    """Its entries changed and zipped again, with valid check sums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i, j = rng.sample(range(len(entries)), 2)
    how = rng.choice(("swapped", "renamed", "left out", "twice", "deflated", "emptied", "blown up", "cut"))
    (name, data), (other, its) = entries[i], entries[j]
    if how == "swapped":
        entries[i], entries[j] = (name, its), (other, data)
    elif how == "renamed":
        entries[i] = (rng.choice(("../" * 5 + "planted", name + "x", "/planted", other)), data)
    elif how == "left out":
        del entries[i]
    elif how == "twice":
        entries.append((name, its))
    elif how in ("emptied", "cut"):
        entries[i] = (name, b"" if how == "emptied" else data[: len(data) // 2])
    elif how == "blown up":
        entries[i] = (name, bytes(2**28))
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if how in ("deflated", "blown up") else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry in entries:
            archive.writestr(*entry)
    return Mutant(f"entry {name.partition('/')[2]} {how}", file.getvalue())


def edited(content: bytes, rng: random.Random) -> Mutant:
    """One value replaced or left out, somewhere in what the file holds."""
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    parts = [checkpoint["genlab"], checkpoint["genlab"], checkpoint["state_dict"], checkpoint["optimizer_states"]]
    part = rng.choice([*parts, checkpoint["callbacks"], checkpoint["loops"], {"": checkpoint}])
    node, key = rng.choice(places(part) or [(checkpoint, "state_dict")])
    if rng.random() < 0.2:
        del node[key]
        return Mutant(f"{key!r} left out", _saved(checkpoint))
    value = _tensor(node[key], rng) if torch.is_tensor(node[key]) and rng.random() < 0.7 else rng.choice(ODD)
    node[key] = value
    return Mutant(f"{key!r} = {str(value)[:40]!r} ({type(value).__name__})", _saved(checkpoint))


def poisoned(content: bytes, rng: random.Random) -> Mutant:
    """Every weight of every network is NaN."""
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if value.is_floating_point():
            checkpoint["state_dict"][name] = torch.full_like(value, math.nan)
    return Mutant("NaN weights", _saved(checkpoint), refused=True)


def reworded(content: bytes, rng: random.Random) -> Mutant:
    """Another config: one value changed, or something else altogether."""
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    card = checkpoint["genlab"]
    if rng.random() < 0.2:
        card["config"] = rng.choice([*TEXTS, OmegaConf.to_container(OmegaConf.create(card["config"])), PLANT])
        return Mutant(f"config {str(card['config'])[:40]!r}", _saved(checkpoint))
    config: Any = OmegaConf.to_container(OmegaConf.create(card["config"]))
    section = rng.choice([config["model"], config["model"], config["data"], config])
    node, key = rng.choice(places(section))
    value = rng.choice([v for v in [*ODD, *HOSTILE, *HOSTILE] if not torch.is_tensor(v)])
    if rng.random() < 0.15:
        node[rng.choice(("odd", "_target_", "_args_", "spec"))] = value
    elif rng.random() < 0.15:
        del node[key]
    else:
        node[key] = copy.deepcopy(value)
    card["config"] = json.dumps(config)  # which is YAML too, and keeps what is odd as it is
    return Mutant(f"config with {key}={str(value)[:60]!r}", _saved(checkpoint))


MUTATIONS: list[Callable[[bytes, random.Random], Mutant]] = [flipped, cut, rezipped, edited, edited, poisoned, reworded]
MUTATIONS += [reworded]


def _tensor(was: torch.Tensor, rng: random.Random) -> torch.Tensor:
    return rng.choice([
        was.flatten(), was[..., None], was.new_zeros(0), was.new_zeros((1, *was.shape)), was.to(torch.complex64),
        was.to(torch.bool), was.to(torch.float64), was.to(torch.int8), was.to_sparse(), torch.full(was.shape, math.inf),
        torch.full(was.shape, 1e38), torch.zeros(()).expand(10**6, 10**6),
    ])  # fmt: skip


def _saved(checkpoint: Any) -> bytes:
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getvalue()


def request(kind: str, verb: str, file: Path) -> list[str]:
    """The command line that uses a checkpoint of that kind."""
    if verb == "eval":
        return ["eval", f"ckpt={file}", "data.limit=20"]
    if verb == "resume":
        return ["resume", "run=run"]
    return ["sample", f"ckpt={file}", "n=1", *(["code=gaussian"] if kind.endswith("_ae") else [])]


def attempt(kind: str, verb: str, content: bytes, folder: Path, mutant: Mutant | None) -> tuple[str | None, Any]:
    """Run one verb on one file in an empty working folder: (what is wrong, the outcome)."""
    place, file = folder / "place", folder / "mutant.ckpt"
    place.mkdir()
    try:
        if verb == "resume":
            shutil.copytree(FIXTURES / "run", place / "run")
            file = place / "run" / "checkpoints" / "last.ckpt"
        file.write_bytes(content)
        before = tree(place)
        outcome = call(request(kind, verb, file), place)
        after = tree(place)
        wrong = fault(outcome, before, after, refused=mutant is not None and mutant.refused)
        if any("planted" in name for name in after):
            wrong = "the file made a folder"
        results = (place / "eval.json").read_text() if verb == "eval" and outcome.status == 0 else ""
        kept = {name: after[name] for name in after if name.endswith((".npy", "metrics.csv"))}
        return wrong, (outcome.status, results, kept)
    finally:
        shutil.rmtree(place)


def run(tally: Tally, count: int, rng: random.Random) -> None:
    """`count` mutants."""
    preload()
    files = sorted((FIXTURES / "checkpoints").glob("*.ckpt"))
    right: dict[tuple[str, str], Any] = {}
    with workplace() as folder:
        for number in range(count):
            verb = rng.choice(("sample", "sample", "eval", "resume"))
            file = FIXTURES / "run" / "checkpoints" / "last.ckpt" if verb == "resume" else rng.choice(files)
            if (file.stem, verb) == ("pixelcnn_half", "sample"):
                verb = "eval"  # it draws only when it is given a picture
            content = file.read_bytes()
            mutant = MUTATIONS[number % len(MUTATIONS)](content, rng)
            wrong, ours = attempt(file.stem, verb, mutant.content, folder, mutant)
            if wrong is None and mutant.damaged and ours[0] == 0:
                if (file.stem, verb) not in right:
                    right[file.stem, verb] = attempt(file.stem, verb, content, folder, None)[1]
                if ours != right[file.stem, verb]:
                    wrong = "damaged, and read as something else"
            tally.add(f"{verb} of {file.stem} with {mutant.what}", wrong)


if __name__ == "__main__":
    main(run, 500)
