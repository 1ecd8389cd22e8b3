"""Find the module that produced the first non-finite number, for the error message of a stopped run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, compute: Callable[[], dict[str, Tensor]]) -> str | None:
    """Dotted name of the first module whose output is not finite when `compute` is called; None if all are.

    Hooks are called in the order in which modules finish, so an inner module is named before the one that contains it.
    """
    culprits: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not culprits and not all(t.isfinite().all() for t in _tensors(output)):
                culprits.append(name or type(model).__name__)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled graph does not call the hooks
            compute()
    finally:
        for hook in hooks:
            hook.remove()
    return culprits[0] if culprits else None


def _tensors(output: object) -> Iterator[Tensor]:
    """Floating-point tensors inside tuples, lists, dictionaries and objects' attributes."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dict__"):  # lazy distributions
        yield from (value for value in vars(output).values() if isinstance(value, Tensor) and value.is_floating_point())
