"""Fewer levels: from images of L levels 0..L - 1 to images of K levels, with equal shares: x becomes x K // L.

With L = 256 and K = 4 these are 2-bit images: 0..63 becomes 0, 64..127 becomes 1, and so on (the "2-bit" images of
van den Oord et al. 2016, arXiv:1606.05328, and of courses). Images with other levels are another random variable, so
the data has another name.
"""

from __future__ import annotations

from torch import Tensor

from genlab.core import RequestError


def reduce_levels(images: Tensor, levels: int, before: int) -> Tensor:
    """Integers in 0..`before` - 1 -> uint8 in 0..`levels` - 1, any shape. Equal levels change nothing."""
    return images if levels == before else (images.int() * levels // before).to(images.dtype)


def check_levels(levels: int, before: int, binarize: str) -> None:
    """Raise RequestError unless images of `before` levels can be given `levels`."""
    if binarize != "none":
        raise RequestError(f"data.binarize={binarize} makes 2 levels: leave out data.levels={levels}")
    if not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= before:
        raise RequestError(f"data.levels={levels} is not possible: these images have {before}, so give 2 to {before}")
