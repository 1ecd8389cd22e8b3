"""Whether the pretend device refuses what CUDA refuses, and counts what CUDA waits for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pretend import DEVICE, Generator, counted


def refused(does: Callable[[], object]) -> None:
    """It raises."""
    try:
        does()
    except RuntimeError:
        return
    raise AssertionError("not refused")


def check() -> None:
    """AssertionError if it does not. To be called while the device is `Pretending`."""
    x, index, host = torch.arange(6.0, device=DEVICE), torch.arange(3), torch.ones(6)
    free = {
        "arithmetic": lambda: (x + 1) * torch.tensor(2.0),
        "fill": lambda: x.masked_fill(x > 2, 0),
        "a masked number": lambda: x.clone().__setitem__(x > 2, 0),
        "pinned": lambda: host.pin_memory().to(DEVICE, non_blocking=True),
        "made there": lambda: torch.zeros(3, device=DEVICE),
        "inv_ex": lambda: torch.linalg.inv_ex(torch.eye(2, device=DEVICE)),
        "draw": lambda: torch.rand(3, device=DEVICE, generator=Generator().manual_seed(1)),
    }
    waits = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.any()),
        "int": lambda: int(x[0]),
        "list": x.tolist,
        "cpu": x.cpu,
        "print": lambda: str(x),
        "nonzero": x.nonzero,
        "where": lambda: torch.where(x > 2),
        "mask": lambda: x[x > 2],
        "unique": x.unique,
        "equal": lambda: torch.equal(x, x + 1),
        "index": lambda: x[index],
        "pageable": lambda: host.to(DEVICE),
        "pinned, blocking": lambda: host.pin_memory().to(DEVICE),
        "copy_": lambda: torch.zeros(6, device=DEVICE).copy_(host),
        "tensor": lambda: torch.tensor([1, 2], device=DEVICE),
        "inv": lambda: torch.linalg.inv(torch.eye(2, device=DEVICE)),
        "bincount": lambda: x.long().bincount(minlength=9),
    }
    for most, group in ((0, free), (1, waits)):
        for name, does in group.items():
            with counted() as found:
                does()
            assert (sum(found.values()) > 0) == most, (name, found)
    refused(lambda: x + host)
    refused(lambda: host[x.long()])
    refused(lambda: torch.stack([x.sum(), torch.zeros(())]))
    refused(lambda: torch.cat([x, host]))
    refused(lambda: torch.rand(3, generator=Generator()))
    refused(lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()))
    refused(lambda: torch.nn.functional.linear(x, torch.ones(2, 6)))
    y = x.clone().requires_grad_()
    (y.square().sum()).backward()
    assert y.grad is not None
    assert y.grad.device == DEVICE
    assert y.grad.tolist() == (2 * x).tolist()
    z = torch.complex(torch.ones(3), torch.ones(3))
    assert (z.to(DEVICE).conj() * 2).tolist() == (z.conj() * 2).tolist()
