"""Which images a run was trained, validated and tested on, so that other data is noticed.

A checkpoint's card keeps a hash of every image of a split ("images") and one hash of the whole split ("fingerprints").
Both are of the pixels after cropping and resizing and before binarising, so names and places of files do not matter.
(Another version of Pillow may decode a JPEG to other pixels; these count as other images.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.core import RequestError


def hashes(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) -> a hash of 64 bits of each, int64 (N,)."""
    rows = images.cpu().numpy()
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))


def fingerprint(of_images: Tensor, labels: Tensor) -> str:
    """One hash of a split: of its images with their labels, independent of their order."""
    pairs = np.stack([of_images.numpy(), labels.cpu().numpy()], 1).astype("<i8")
    return hashlib.sha256(pairs[np.lexsort(pairs.T)].tobytes()).hexdigest()


def card(data: Any) -> dict[str, Any]:
    """What a checkpoint keeps of its data, primitives and tensors; {} of a data module that has no fingerprints."""
    if not hasattr(data, "fingerprints"):
        return {}
    return {"fingerprints": data.fingerprints, "images": data.hashes, "class_names": [str(n) for n in data.class_names]}


def others(
    card: Mapping[str, Any], data: Any, splits: Iterable[str], *, fewer: bool = False
) -> dict[str, dict[str, int]]:
    """The splits of `data` that differ from those of the run of a checkpoint, and how; {} if the run's are not known.

    Counts of each split: "images" in all; "other", those that are not in the run's split of that name; "train",
    "valid", "test", where the run had them; "new", those it never had; "missing", the run's images that are not here.
    With `fewer` it is intended that images are missing, and none are counted.
    """
    were, now = card.get("fingerprints"), getattr(data, "fingerprints", None)
    if not were or now is None:
        return {}
    differ = {}
    for split in splits:
        here, had = data.hashes[split], card["images"]
        other = int((~torch.isin(here, had[split])).sum())
        if now[split] == were[split] or (fewer and not other):
            continue
        left, counts = torch.ones(len(here), dtype=torch.bool), {"images": len(here), "other": other}
        for name in ("train", "valid", "test"):
            inside = left & torch.isin(here, had[name])
            counts[name], left = int(inside.sum()), left & ~inside
        missing = 0 if fewer else int((~torch.isin(had[split], here)).sum())
        differ[split] = {**counts, "new": int(left.sum()), "missing": missing}
    return differ


def sentence(split: str, counts: Mapping[str, int]) -> str:
    """What a user is told about a split that differs from the run's."""
    if not counts["other"] and not counts["missing"]:
        return f"the run's {split} images had other labels or other numbers of copies"
    did = {
        "train": "were trained on", "valid": "were validated on", "test": "were set aside for the test",
        "new": "the run never had", "missing": f"of the run's {split} images are missing",
    }  # fmt: skip
    parts = ", ".join(f"{counts[name]:,} {what}" for name, what in did.items() if counts[name])
    return f"these are not the {split} images of the run: of {counts['images']:,}, {parts}"


def check_same(card: Mapping[str, Any], data: Any) -> None:
    """Refuse to go on with a run whose data has changed; a checkpoint without fingerprints goes on."""
    differ = others(card, data, ("train", "valid", "test"))
    if differ:
        split, counts = next(iter(differ.items()))
        raise RequestError(
            f"the data has changed since the run began ({sentence(split, counts)}): put it back as it was, or start "
            "a new run (train init=RUN begins with the weights of this one)"
        )
