"""Muon: momentum whose matrices are orthogonalised, beside AdamW for all other weights, in one optimiser.

Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein 2024 (https://kellerjordan.github.io/posts/muon/). With the average
M of the gradients G of a matrix (R, S), each step is

    M <- m M + (1 - m) G        U = (1 - m) G + m M (Nesterov)        W <- (1 - lr decay) W - lr scale orth(U)

orth(U) has the singular vectors of U and singular values near 1. So directions in which the gradient is small are
learnt as fast as those in which it is large. scale = 0.2 sqrt(max(R, S)) gives an entry of the update the size that it
has with AdamW, 0.2 lr (Liu et al. 2025, arXiv:2502.16982, sec. 2.2): learning rates of both are comparable.

torch.optim.Muon takes unmasked 2-D weights only, and most of ours are masked kernels; so this one is ours. On 2-D
weights both are equal (a test compares them).

Which weights are matrices:
    convolution       its kernel (R, S, k, k) is the matrix (R, S k k)
    transposed one    its kernel (S, R, k, k) is the matrix (S, R k k); transposing changes nothing in orth
    masked            columns that the mask hides from all rows are left out; where a mask differs between rows
                      (colour groups), it is applied to the update. Masked weights do not move
    several in one    queries, keys and values, or the gates of an LSTM: the module lists their rows in `matrix_rows`,
                      and each is a matrix of its own. So is each group of a grouped convolution
AdamW updates the rest: biases, gains, embeddings, the heads, what a module lists in `adamw_weights` (the layers that
read the image itself, a classifier's last one), and matrices with a single row or column, such as depthwise kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: the steepest at 0 that keep singular values near 1
STEPS = 5


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices (n, R, S) -> as many with the same singular vectors, and singular values from 0.68 to 1.14.

    Five Newton-Schulz steps of degree 5; in bfloat16 on a GPU, which is precise enough and much faster there.
    """
    a, b, c = COEFFICIENTS
    dtype, tall = x.dtype, x.shape[1] > x.shape[2]
    x = x.to(_precision(x))
    x = x.mT if tall else x
    x = x / x.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-7)  # singular values of at most 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(dtype)


def _precision(x: Tensor) -> torch.dtype:
    return torch.bfloat16 if x.device.type == "cuda" else x.dtype


@dataclass(frozen=True, eq=False)
class Layout:
    """How a weight holds matrices: below one another, with R rows in all and S columns.

    `rows`: of each matrix. `columns` (S',): indices of the columns that the mask leaves to some row; None: all of them.
    `mask` (R, S'): of these columns, 1 or 0; None if there is none.
    """

    rows: Sequence[int]
    columns: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, rows: Sequence[int] | None = None, mask: Tensor | None = None) -> Layout:
        """The layout of a weight (R, …), one matrix unless `rows` says otherwise. `mask`: of the weight's shape."""
        rows = rows or [len(weight)]
        if mask is None or bool(mask.all()):
            return cls(rows)
        flat = mask.reshape(sum(rows), -1) != 0
        columns = flat.any(0).nonzero().flatten()
        kept = flat[:, columns]
        return cls(rows, columns, None if bool(kept.all()) else kept.to(weight.dtype))

    def matrices(self, values: Tensor) -> list[Tensor]:
        """The matrices in values of the weight's shape."""
        flat = values.reshape(sum(self.rows), -1)
        flat = flat if self.columns is None else flat[:, self.columns]
        return list(flat.split(list(self.rows)))

    def weight(self, matrices: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """The reverse: values of the weight's shape, 0 where they are masked."""
        values = torch.cat(list(matrices))
        values = values if self.mask is None else values * self.mask
        if self.columns is not None:
            values = values.new_zeros(len(values), shape.numel() // len(values)).index_copy(1, self.columns, values)
        return values.view(shape)


def layouts(model: nn.Module) -> dict[nn.Parameter, Layout]:
    """The weights of a model that are matrices, with their layouts. The others are for AdamW."""
    rows: dict[Tensor, Sequence[int]] = {}
    excluded: set[Tensor] = set()
    for module in model.modules():
        own = dict(map(_plain_name, module.named_parameters()))
        rows.update({own[name]: each for name, each in getattr(module, "matrix_rows", {}).items() if name in own})
        excluded |= {own[name] for name in getattr(module, "adamw_weights", ()) if name in own}
        if isinstance(getattr(module, "head", None), nn.Module):
            excluded |= set(module.head.parameters())  # type: ignore[union-attr]
        if isinstance(module, nn.Embedding):
            excluded.add(module.weight)
    result = {}
    for name, weight in map(_plain_name, model.named_parameters()):
        path, _, last = name.rpartition(".")
        if weight in excluded or weight.ndim < 2 or not (last == "weight" or weight in rows):
            continue
        module = model.get_submodule(path)
        groups, mask = getattr(module, "groups", 1), getattr(module, "mask", None)
        if last == "weight" and isinstance(groups, int) and groups > 1:
            rows[weight] = groups * [len(weight) // groups]
        masked = last == "weight" and isinstance(mask, Tensor) and mask.shape == weight.shape
        layout = Layout.of(weight, rows.get(weight), mask if masked else None)
        if all(min(matrix.shape) > 1 for matrix in layout.matrices(weight.detach())):
            result[weight] = layout
    return result


def _plain_name(named: tuple[str, nn.Parameter]) -> tuple[str, nn.Parameter]:
    """A weight that is computed from another one (spectral norm) lends it its name."""
    name, weight = named
    return name.replace("parametrizations.weight.original", "weight"), weight


class Muon(torch.optim.Optimizer):
    """Groups with a key "momentum" hold matrices; the other groups hold weights for AdamW, with torch's settings of it.

    `layouts`: of every weight in the groups of matrices. Weights without a gradient are skipped, and so is their state,
    as in AdamW. The state of a matrix is the average M of its gradients.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], layouts: dict[nn.Parameter, Layout]) -> None:
        self.layouts = layouts
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all weights. `closure`: computes the gradients again and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights and "momentum" in group:
                self._orthogonal_step(weights, group)
            elif weights:
                self._adamw_step(weights, group)
        return loss

    def _orthogonal_step(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients: list[Any] = [weight.grad for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        averages = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(list[Tensor](weights), 1 - group["lr"] * group["weight_decay"])
        of_weight = [self.layouts[w].matrices(direction) for w, direction in zip(weights, directions, strict=True)]
        updates = iter(_updates([matrix for matrices in of_weight for matrix in matrices]))
        for weight, matrices in zip(weights, of_weight, strict=True):
            update = self.layouts[weight].weight([next(updates) for _ in matrices], weight.shape)
            weight.add_(update, alpha=-group["lr"])

    def _adamw_step(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                device = weight.device if group["fused"] else "cpu"  # as in torch.optim.AdamW
                self.state[weight]["step"] = torch.zeros((), device=device)
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        first, second = group["betas"]
        adamw(
            weights, [weight.grad for weight in weights],  # type: ignore[arg-type, misc]
            [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [],
            [state["step"] for state in states],
            fused=group["fused"], amsgrad=False, beta1=first, beta2=second, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def _updates(matrices: Sequence[Tensor]) -> list[Tensor]:
    """scale orth(U) of every matrix U. Those of one shape go together: few large products keep a GPU busy."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(i)
    updates: dict[int, Tensor] = {}
    for shape, places in by_shape.items():
        together = orthogonalise(torch.stack([matrices[i] for i in places])).mul_(0.2 * math.sqrt(max(shape)))
        updates.update(zip(places, together, strict=True))
    return [updates[i] for i in range(len(matrices))]
