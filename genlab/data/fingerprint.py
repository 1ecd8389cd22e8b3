"""Fingerprints: which images a run was trained, validated and tested on, so that a change of the data is noticed.

The card of a checkpoint keeps a hash of every image of a split ("images") and one hash of the whole split
("fingerprints"). The hashes are of pixels, after cropping and resizing and before binarising, so the names and places
of files do not matter. (Another version of Pillow may decode a JPEG file to other pixels. These count as other images.)
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
    """Images uint8 (N, C, H, W) -> a 64-bit hash of every image, int64 (N,)."""
    rows = images.cpu().numpy()
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(digests, "<i8").astype(np.int64))


def fingerprint(image_hashes: Tensor, labels: Tensor) -> str:
    """One hash of a split, from the hashes of its images (N,) and their labels (N,). Their order does not matter."""
    pairs = np.stack([image_hashes.numpy(), labels.cpu().numpy()], 1).astype("<i8")
    return hashlib.sha256(pairs[np.lexsort(pairs.T)].tobytes()).hexdigest()


def card(data: Any) -> dict[str, Any]:
    """The part of a checkpoint's card that describes its data: primitives and tensors.

    {} for a data module without fingerprints.
    """
    if not hasattr(data, "fingerprints"):
        return {}
    return {"fingerprints": data.fingerprints, "images": data.hashes, "class_names": [str(n) for n in data.class_names]}


def differences(
    card: Mapping[str, Any], data: Any, splits: Iterable[str], *, fewer: bool = False
) -> dict[str, dict[str, int]]:
    """Compare splits of `data` with those of the run of a checkpoint: counts for every split that differs.

    "images": how many images the split has. "other": how many of them are not in the run's split of that name. "train",
    "valid", "test": how many of the images were in these splits of the run. "new": how many were in none. "missing":
    how many images of the run's split are not in the split now. If `fewer`, missing images are intended, and it is 0.

    {} if nothing differs, or if the run's data is not known.
    """
    before, now = card.get("fingerprints"), getattr(data, "fingerprints", None)
    if not before or now is None:
        return {}
    counts_of_splits = {}
    for split in splits:
        images, run_images = data.hashes[split], card["images"]
        other = int((~torch.isin(images, run_images[split])).sum())
        if now[split] == before[split] or (fewer and not other):
            continue
        remaining, counts = torch.ones(len(images), dtype=torch.bool), {"images": len(images), "other": other}
        for name in ("train", "valid", "test"):
            inside = remaining & torch.isin(images, run_images[name])
            counts[name], remaining = int(inside.sum()), remaining & ~inside
        missing = 0 if fewer else int((~torch.isin(run_images[split], images)).sum())
        counts_of_splits[split] = {**counts, "new": int(remaining.sum()), "missing": missing}
    return counts_of_splits


def sentence(split: str, counts: Mapping[str, int]) -> str:
    """Describe for a user how a split differs from the run's; `counts` is its entry in `differences`."""
    if not counts["other"] and not counts["missing"]:
        return f"the run's {split} images had other labels or other numbers of copies"
    phrases = {
        "train": "were trained on", "valid": "were validated on", "test": "were set aside for the test",
        "new": "the run never had", "missing": f"of the run's {split} images are missing",
    }  # fmt: skip
    parts = ", ".join(f"{counts[name]:,} {phrase}" for name, phrase in phrases.items() if counts[name])
    return f"these are not the {split} images of the run: of {counts['images']:,}, {parts}"


def check_same(card: Mapping[str, Any], data: Any) -> None:
    """Raise RequestError if the data of a run has changed. A checkpoint without fingerprints passes."""
    changed = differences(card, data, ("train", "valid", "test"))
    if changed:
        split, counts = next(iter(changed.items()))
        raise RequestError(
            f"the data has changed since the run began ({sentence(split, counts)}): put it back as it was, or start "
            "a new run (train init=RUN begins with the weights of this one)"
        )
