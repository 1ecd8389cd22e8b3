"""The device of a model, and what a GPU needs: few waits for it, and float32 products that are computed in float32.

The host queues work for a GPU and runs ahead of it. It must wait, and the queue becomes empty, when it reads a number
from the GPU, copies memory that is not pinned, or calls linear algebra that checks for success. A training step waits
once, and sampling at most once a row. `tests/pretend.py` counts the waits.

By default cuDNN multiplies float32 numbers as TF32 (a mantissa of 10 bits). A global setting makes cuBLAS do the same,
and makes oneDNN use bfloat16. Results that are compared must not depend on this: see `true_float32`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from genlab.core import RequestError


def choose_device(name: str) -> torch.device:
    """The device of `device=auto|cpu|cuda`; `auto` is a GPU if there is one.

    Raises RequestError for one that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise RequestError(f"device={name} is not known: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("device=cuda: this machine has no usable CUDA device; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. A copy to a GPU goes through pinned memory and is queued, so the host does not wait."""
    if tensor.device.type == "cpu" and torch.device(device).type != "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Mirror:
    """The host's copy of a buffer that holds one number and changes in place.

    Reading the copy does not wait for a GPU. The buffer itself is read only after other code has written to it (a
    checkpoint that is loaded, a training step that is undone) or after it has been moved to another device.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._version, self._value = -1, 0.0

    def read(self, buffer: Tensor) -> float:
        """The value of the buffer."""
        if self._buffer is not buffer or self._version != buffer._version:
            self.note(buffer, buffer.item())
        return self._value

    def note(self, buffer: Tensor, value: float) -> None:
        """Remember that `buffer` now holds this value."""
        self._buffer, self._version, self._value = buffer, buffer._version, value


# ---- linear algebra without a check for success. If it fails the result is NaN, which training and evaluation report


def cholesky(m: Tensor) -> Tensor:
    """Positive definite matrices (…, L, L) -> their lower triangular Cholesky factors."""
    root, failed = torch.linalg.cholesky_ex(m)
    return _or_nan(root, failed)


def inverse(m: Tensor) -> Tensor:
    """Matrices (…, L, L) -> their inverses."""
    inverted, failed = torch.linalg.inv_ex(m)
    return _or_nan(inverted, failed)


def solve(m: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    """The solution x of m x = b with b (…, L, n), or if not `left` of x m = b with b (…, n, L); m (…, L, L)."""
    x, failed = torch.linalg.solve_ex(m, b, left=left)
    return _or_nan(x, failed)


def _or_nan(result: Tensor, failed: Tensor) -> Tensor:
    return torch.where((failed == 0)[..., None, None], result, math.nan)


# ---- precision


@contextmanager
def true_float32() -> Iterator[None]:
    """Inside the block, products of float32 numbers are computed in float32, whatever was set before.

    So there is no TF32 in cuBLAS and cuDNN, and no TF32 or bfloat16 in oneDNN. Autocast is not affected. Can also be
    used as a decorator.
    """
    # PyTorch has two interfaces: an older one, and a setting for each library and kind of operation (torch >= 2.9).
    # Both are set, so that they do not contradict each other.
    matmul, conv = "highest", True
    with suppress(RuntimeError):  # "mix of the legacy and new APIs": then only the newer one counts
        matmul, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    before = [(part, part.fp32_precision) for part in _settings()]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for part, _ in before:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = conv
        for part, value in before:
            part.fp32_precision = value


def precision_used(tensor: Tensor) -> str:
    """The precision in which products of tensors like this one are computed now.

    "64" or "32"; "tf32" or "bf16" for reduced float32; "16-mixed" or "bf16-mixed" under autocast.
    """
    if torch.is_autocast_enabled(tensor.device.type):
        return "bf16-mixed" if torch.get_autocast_dtype(tensor.device.type) == torch.bfloat16 else "16-mixed"
    if tensor.dtype != torch.float:
        return {torch.double: "64"}.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    cuda = tensor.device.type == "cuda"
    if parts := _settings(("cuda", "cudnn") if cuda else ("mkldnn",)):
        reduced = {part.fp32_precision for part in parts} & {"tf32", "bf16"}
        return min(reduced, default="32")
    matmul = torch.get_float32_matmul_precision()
    if cuda:
        return "tf32" if matmul != "highest" or torch.backends.cudnn.allow_tf32 else "32"
    return {"medium": "bf16", "high": "tf32"}.get(matmul, "32")


def _settings(libraries: tuple[str, ...] = ("cuda", "cudnn", "mkldnn")) -> list[Any]:
    """The objects in which PyTorch keeps the precision of a library's operations. There are none before torch 2.9."""
    parts = (getattr(getattr(torch.backends, lib), op, None) for lib in libraries for op in ("matmul", "conv", "rnn"))
    return [part for part in parts if hasattr(part, "fp32_precision")]
