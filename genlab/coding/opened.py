"""The codec of a checkpoint, and what every process does with a block of images.

The functions are at the top of a file, so that other processes can be told to call them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.build import restore
from genlab.coding.codec import Codec, Undecodable, family, fingerprint, to_bytes
from genlab.coding.container import digest
from genlab.system.device import choose_device


class Opened(NamedTuple):
    """A codec, the fingerprint of its model, and the config of its run."""

    codec: Codec
    fingerprint: str
    run: dict[str, Any]


def open_codec(ckpt: str, weights: str, trust: list[str], portable: bool, at_once: int | None, device: str) -> Opened:
    """The codec of a checkpoint."""
    model, run = restore(ckpt, weights=weights, trust=trust)
    family(model)
    found = fingerprint(model, run["model"])
    return Opened(Codec(model.to(choose_device(device)), portable=portable, at_once=at_once), found, run)


def already(opened: Opened) -> Opened:
    """The codec that this process has opened."""
    return opened


def encode_block(opened: Opened, x: Tensor, labels: Tensor | None, verify: bool) -> tuple[bytes, str, str, int]:
    """A block of images -> (its bytes, how it is coded, the hash of its images, their number)."""
    codec = opened.codec
    content, coder = codec.encode(x.long(), labels, verify=verify)
    return content, coder, digest(to_bytes(x, codec.spec)), len(x)


def decode_block(opened: Opened, content: bytes, coder: str, count: int, images: str) -> Tensor | None:
    """A block -> its images (n, C, H, W) uint8 (int32 for many levels), or None if they are not those encoded."""
    codec = opened.codec
    try:
        x = codec.decode(content, coder, count)
    except Undecodable:
        return None
    if digest(to_bytes(x, codec.spec)) != images:
        return None
    return x.to(torch.uint8 if codec.spec.levels <= 256 else torch.int32)
