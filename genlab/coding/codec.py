"""A model as a lossless codec for blocks of images, whatever its family.

    autoregressive     range coder        log2 1/p(x) bits             autoregressive.py
    latent Gaussian    bits-back coder    minus the ELBO in bits       bits_back.py
    flow               bits-back coder    minus its bound in bits      flow.py

Every block is coded by itself, on one thread, so blocks can be decoded alone and by several processes. After encoding,
a block is decoded again. If the images are not the same, it is coded by LZMA instead.

The floats of a net are the same again only on the same kind of machine, with the same versions and number of images.
`Machine` describes this. With `portable`, autoregressive models code in float64 with rounded probabilities
(`tables.py`), and their files can be decoded anywhere. The other families have no portable form.

n images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import platform
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.coding import autoregressive, bits_back, flow
from genlab.coding.bit_stack import Corrupt
from genlab.coding.tables import Plain, Portable
from genlab.core import ImageSpec, RequestError
from genlab.models import Flow, LatentGaussian

AT_ONCE = {"autoregressive": 500, "latent": 16, "flow": 16}  # images that are coded together
BLOCK = {"autoregressive": 500, "latent": 2_500, "flow": 5_000}  # images of a block, unless block= is given


DAMAGED = (lzma.LZMAError, zlib.error)
MOST_NUMBERS = 2**26  # bytes of the labels or exceptions of a block: a file may come from a stranger


class Undecodable(Exception):
    """A block does not decode to the images that it was made from."""


@dataclass(frozen=True)
class Machine:
    """What the bits of a net's floats depend on."""

    torch_version: str
    device: str
    instructions: str
    processor: str
    one_dnn: bool
    constriction: str

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """The machine that runs this."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return cls(
            torch.__version__, name, torch.backends.cpu.get_cpu_capability(), _processor(),
            bool(torch.backends.mkldnn.enabled), version("constriction"),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For the header of a file."""
        return asdict(self)


class Codec:
    """A model on its device that codes blocks of images.

    `portable`: as above. `at_once`: images that are coded together (None: as `AT_ONCE` says). Raises RequestError for a
    model without such a code.
    """

    def __init__(self, model: Any, *, portable: bool = False, at_once: int | None = None) -> None:
        self.kind = family(model)
        if portable and self.kind != "autoregressive":
            raise RequestError("portable=true: only autoregressive models have a portable code; leave it out")
        # Flows compute in float64 because of their fixed-point numbers, not for portability.
        self.model = model.double() if portable or self.kind == "flow" else model
        self.portable, self.at_once = portable, at_once or AT_ONCE[self.kind]
        self.spec: ImageSpec = model.spec
        self.device: torch.device = model.device

    def encode(self, x: Tensor, labels: Tensor | None = None, *, verify: bool = True) -> tuple[bytes, str]:
        """Images (n, C, H, W) and their labels (n,), if the model takes them -> (a block, "model" or "lzma")."""
        with one_thread():
            try:
                block = self._encoded(x, labels)
                if not verify or torch.equal(self.decode(block, "model", len(x)), x.cpu().long()):
                    return block, "model"
            except (OverflowError, Corrupt, Undecodable):  # the model leads to numbers that cannot be coded
                pass
        return lzma.compress(to_bytes(x, self.spec), preset=9 | lzma.PRESET_EXTREME), "lzma"

    def decode(self, block: bytes, coder: str, n: int) -> Tensor:
        """Inverse of `encode`: (n, C, H, W) on the CPU. Raises Undecodable if the block cannot be decoded here."""
        with one_thread():
            try:
                if coder == "lzma":
                    return self._from_bytes(_bounded(lzma.LZMADecompressor(), block, 2 * n * self.spec.dims), n)
                exceptions, labels, code = _sections(block)
                context = torch.from_numpy(labels.astype(np.int64)).to(self.device) if len(labels) else None
                if self.kind == "autoregressive":
                    tables = Portable(exceptions.tolist()) if self.portable else Plain()
                    return autoregressive.decode(self.model, code, n, tables, context).cpu()
                module = bits_back if self.kind == "latent" else flow
                return module.decode(self.model, code, n, self.at_once, context).cpu()
            except (ArithmeticError, AssertionError, Corrupt, LookupError, RuntimeError, ValueError, *DAMAGED) as error:
                raise Undecodable(str(error)) from error

    def _encoded(self, x: Tensor, labels: Tensor | None) -> bytes:
        x = x.to(self.device)
        context = None if labels is None else labels.to(self.device)
        tables: Plain | Portable = Portable() if self.portable else Plain()
        if self.kind == "autoregressive":
            code = autoregressive.encode(self.model, x, tables, context)
        else:
            module = bits_back if self.kind == "latent" else flow
            code = module.encode(self.model, x, self.at_once, context)
        numbers = np.zeros(0) if labels is None else labels.cpu().numpy()
        return _joined(np.array(sorted(tables.exceptions)), numbers, code)

    def _from_bytes(self, content: bytes, n: int) -> Tensor:
        values = np.frombuffer(content, _value_type(self.spec))
        if len(values) != n * self.spec.dims:
            raise Undecodable("a block has another number of values than its images")
        return torch.from_numpy(values.astype(np.int64)).view(n, *self.spec.shape)


def family(model: Any) -> str:
    """autoregressive, latent or flow. Raises RequestError for a model of another family."""
    if isinstance(model, autoregressive.Chained):
        return "autoregressive"
    if isinstance(model, LatentGaussian):
        return "latent"
    if isinstance(model, Flow):
        return "flow"
    raise RequestError(
        "this model is no codec: images are compressed by autoregressive models, latent Gaussian models and flows"
    )


def fingerprint(model: Any, config: Mapping[str, Any]) -> str:
    """SHA-256 of a model: its config, the spec of its images and its weights."""
    hasher = hashlib.sha256(json.dumps([config, str(model.spec)], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return hasher.hexdigest()


def to_bytes(x: Tensor, spec: ImageSpec) -> bytes:
    """Integers (n, C, H, W) -> their values as bytes, two each for more than 256 levels."""
    return x.cpu().numpy().astype(_value_type(spec)).tobytes()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread: how sums are divided among threads changes their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _value_type(spec: ImageSpec) -> str:
    return "u1" if spec.levels <= 256 else "<u2"


def _joined(exceptions: np.ndarray, labels: np.ndarray, code: bytes) -> bytes:
    """The sections of a block: the numbers of exceptional values and the labels, each with its length before it."""
    parts = [zlib.compress(a.astype("<u4").tobytes(), 9) if len(a) else b"" for a in (exceptions, labels)]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts) + code


def _sections(block: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Inverse of `_joined`."""
    arrays = []
    for _ in range(2):
        length = int.from_bytes(block[:4], "little")
        part, block = block[4 : 4 + length], block[4 + length :]
        arrays.append(np.frombuffer(_bounded(zlib.decompressobj(), part, MOST_NUMBERS) if part else b"", "<u4"))
    return arrays[0], arrays[1], block


def _bounded(decompressor: Any, content: bytes, most: int) -> bytes:
    """Decompress at most `most` bytes. Raises ValueError if there are more."""
    found: bytes = decompressor.decompress(content, most)
    if not decompressor.eof:
        raise ValueError("a block has more content than its images")
    return found


def _processor() -> str:
    """Name of the processor, as Linux gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
