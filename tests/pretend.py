"""A pretend accelerator: tensors that say they are on `pretend:0` and are computed on the CPU.

What it is for: no GPU runs these tests, yet code that mixes devices, draws from the wrong generator or makes the host
wait for the device fails on a GPU alone. Here all of that shows, and the numbers must be those of the CPU to the bit.

- *Mixing raises*, as with CUDA: operands of one operation on two devices (numbers, that is tensors without a dimension,
  and CPU indices into device tensors are allowed there, and here), a generator of another device than its draw.
- *Syncs are counted* where the host waits for CUDA: a value is read (`item`, `bool`, `tolist`, `cpu`, printing), the
  shape of a result depends on values (`nonzero`, `unique`, masks as indices, `bincount`), linear algebra looks whether
  it succeeded (`inv`, `cholesky`, `solve`; their `_ex` versions do not), or values cross from memory of the host that
  is not pinned, as an index too. From pinned memory with `non_blocking=True` they cross without one.

What it cannot show: whether kernels exist for CUDA, their numbers, autocast, graphs, speed.

It is an experiment of PyTorch's own (a backend in Python, torch >= 2.10) and is registered once a process, for good: so
use it in a process of its own, as test_pretend.py does. Tensors without the mode `Pretending` cannot be made there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import WeakSet

import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
WAITS = {  # for a value, a shape, or whether it went well
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount, aten.equal, aten.multinomial,
    aten._linalg_check_errors,
}  # fmt: skip


class Backend:
    """What `torch.pretend` has to offer."""

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def _is_in_bad_fork(self) -> bool:
        return False

    is_autocast_enabled = _is_in_bad_fork

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        """Nothing of its own: noise is the CPU's, so that results can be compared with the CPU's."""

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def synchronize(self, device: Any = None) -> None: ...

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 1 << 33, 1 << 33


_setup_privateuseone_for_python_backend("pretend", backend_module=Backend())
DEVICE = torch.device("pretend:0")
_tensor = torch.tensor


def _tensor_there(data: Any, *, device: Any = None, **rest: Any) -> torch.Tensor:
    """`torch.tensor` of numbers of the host, which have to cross."""
    return _tensor(data, **rest).to(device) if there(device) else _tensor(data, device=device, **rest)


torch.tensor = _tensor_there
torch.inference_mode = torch.no_grad  # such tensors have no inference mode, which torch.no_grad is all the same without

syncs: Counter[str] = Counter()  # what the host waited for, and where


def sync(what: str) -> None:
    """Count one, under the line of genlab that asked for it."""
    frame = sys._getframe()
    while frame is not None and "/genlab/" not in frame.f_code.co_filename:
        frame = frame.f_back  # type: ignore[assignment]
    where = "backward or Lightning"
    if frame is not None:
        where = f"{frame.f_code.co_filename.rpartition('/genlab/')[2]}:{frame.f_lineno}"
    syncs[f"{what} at {where}"] += 1


class Generator(torch.Generator):
    """A generator that lives on the pretend device; its numbers are those of a CPU generator of the same seed."""

    alive: ClassVar[WeakSet[Generator]] = WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


class Pretend(torch.Tensor):
    """A tensor on the pretend device; `elem` has its values."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> Pretend:
        made = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.elem = elem
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        sync("repr")
        return f"Pretend({self.elem})"

    def tolist(self) -> Any:
        sync("tolist")
        return self.elem.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a pretend device type tensor to numpy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU."""
        sync("save")
        return self.elem.detach().__reduce_ex__(protocol)


class Pretending(TorchDispatchMode):
    """While it is entered, tensors can be made on the pretend device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def there(device: Any) -> bool:
    """Whether this is the pretend device."""
    return device is not None and torch.device(device).type == "pretend"


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: refuse a mixture, count a sync, compute on the CPU, wrap."""
    ours, plain, generators = [], [], []
    for a in leaves((args, kwargs)):
        if isinstance(a, Pretend):
            ours.append(a)
        elif isinstance(a, torch.Tensor):
            plain.append(a)
        elif isinstance(a, torch.Generator):
            generators.append(a)
    if func in (aten.is_pinned.default, aten._pin_memory.default):
        return pinned(func, args[0])
    to = kwargs.get("device")
    on = there(to) if to is not None else bool(ours)
    if func is aten.copy_.default:
        on = isinstance(args[0], Pretend)
    elif ours and func in INDEXING:
        check_index(func, *args)
    elif ours and func not in COPIES and (wrong := [tuple(a.shape) for a in plain if a.dim() or not elementwise(func)]):
        raise RuntimeError(f"Expected all tensors to be on the same device, found pretend:0 and cpu ({func}, {wrong})")
    for generator in generators:
        if any(generator._cdata == each._cdata for each in Generator.alive) != on:  # it comes in another wrapping
            raise RuntimeError(f"Expected a generator of the draw's device, found one of the other ({func})")
    if ours and func.overloadpacket in WAITS:
        sync(func.overloadpacket.__name__)
    if func in COPIES and ours and not on:
        sync("copy to the host")
    if func in COPIES and on and any(a.numel() and not is_pinned(a) for a in plain):
        sync("copy from pageable memory")
    elif func in COPIES and on and plain and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
        sync("blocking copy from the host")

    if func is aten._conj.default:  # lazy: a bit on `elem`, which nobody would look at here
        func = aten._conj_physical.default
    out = func(*each(on_the_cpu, args), **each(on_the_cpu, kwargs))
    if not on:
        return out
    if func is aten._to_copy.default and any(out is a for a in plain):
        out = out.clone()
    wrapped = Pretend(out) if isinstance(out, torch.Tensor) else each(wrap, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


NUMBERS = frozenset({int, float, bool, type(None), torch.dtype, str})  # leaves of no interest


def each(change: Any, value: Any) -> Any:
    """The arguments or results of an operation with every leaf changed. `torch.utils._pytree` takes four times as long,
    which was more than half of the time of these tests.
    """
    if type(value) in NUMBERS:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)([each(change, part) for part in value])
    if isinstance(value, dict):
        return {key: each(change, part) for key, part in value.items()}
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """The leaves of the same, without numbers."""
    for part in value.values() if isinstance(value, dict) else value:
        if type(part) in NUMBERS:
            continue
        if isinstance(part, (list, tuple, dict)):
            yield from leaves(part)
        else:
            yield part


def on_the_cpu(value: Any) -> Any:
    """The tensor that a tensor of the device stands for; the CPU for the device."""
    if isinstance(value, Pretend):
        return value.elem
    return torch.device("cpu") if isinstance(value, torch.device) and there(value) else value


def wrap(value: Any) -> Any:
    """A tensor of the device for one of the CPU."""
    return Pretend(value) if isinstance(value, torch.Tensor) else value


def elementwise(func: Any) -> bool:
    """Whether an operation takes a number of the CPU among tensors of a device."""
    return torch.Tag.pointwise in func.tags or "foreach" in func.name() or "fill" in func.name()


def check_index(func: Any, target: torch.Tensor, indices: Any, values: Any = None, *rest: Any) -> None:
    """A CPU index crosses to the device; a mask has to be counted first, unless one number is to be filled in."""
    given = [i for i in indices if i is not None]
    if not isinstance(target, Pretend):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if values is not None and not isinstance(values, Pretend) and values.dim():
        raise RuntimeError(f"Expected all tensors to be on the same device, found pretend:0 and cpu ({func})")
    if any(not isinstance(i, Pretend) and i.dim() for i in given):
        sync("index from the host")
    if any(i.dtype in (torch.bool, torch.uint8) for i in given) and (values is None or values.numel() > 1):
        sync("mask as index")


def pinned(func: Any, tensor: torch.Tensor) -> Any:
    """`is_pinned` and `pin_memory` of a tensor of the host."""
    if func is aten.is_pinned.default:
        return is_pinned(tensor)
    if isinstance(tensor, Pretend):
        raise RuntimeError("only dense CPU tensors can be pinned")
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether `pin_memory` made it."""
    return getattr(tensor, "pinned", False)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The syncs of a block, which are counted nowhere else."""
    global syncs
    before, syncs = syncs, Counter()
    try:
        yield syncs
    finally:
        syncs = before


class Accelerator(pl.accelerators.Accelerator):
    """Lightning's side of it."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "pretend"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


pl.accelerators.AcceleratorRegistry.register("pretend", Accelerator, description="computes on the CPU")
