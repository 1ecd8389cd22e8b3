"""The measurements of scripts/bench.py: ceilings, training, sampling, memory. (The learner: bench_overhead.py.)

Times on shared machines vary by a factor of two within a minute. So variants take turns: each runs once in every round,
ratios are taken within a round, and the median and range over rounds are reported. Every process trains one step before
it times anything. An allocator that has only seen forward passes gives memory back after each call and page-faults in
the next, so forward passes would look up to twice as slow.

B images a batch, T steps an image. FLOPs are nominal: two per multiply-add of every product as it is called, masked
weights included (torch.utils.flop_counter). Ceilings are this machine's own, by square matrix products.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genlab.build import build
from genlab.core import ImageSpec
from genlab.nets.causal.recompute import Recompute
from genlab.request.compose import Request, split_hydra
from genlab.train.optim import AdamW
from genlab.train.plan import Plan

BATCH = 64  # images of a training step
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One model on one shape of image."""

    model: str  # NAME or NAME:keyword=value,… of its net
    data: str  # CxHxW
    width: int
    depth: int
    device: str

    @property
    def spec(self) -> ImageSpec:
        """256 levels."""
        channels, height, width = map(int, self.data.split("x"))
        return ImageSpec(channels, height, width)

    @property
    def name(self) -> dict[str, Any]:
        """What a record says about it."""
        return {k: v for k, v in asdict(self).items() if k != "device"}

    def config(self, *more: str) -> DictConfig:
        """As `genlab train` would compose it."""
        name, _, keywords = self.model.partition(":")
        sizes = [f"model={name}", f"model.net.width={self.width}", f"model.net.depth={self.depth}"]
        sizes += [f"model.net.{keyword}" for keyword in keywords.split(",") if keyword]
        where = [f"trainer={'gpu' if self.device == 'cuda' else 'cpu'}"]
        return split_hydra(Request("train", [*sizes, *where, *more], command="").config())[0]

    def build(self) -> Any:
        """The model, in channels_last as the learner trains it."""
        torch.manual_seed(0)
        return build(self.config().model, self.spec).to(memory_format=torch.channels_last).to(self.device)

    def images(self, n: int) -> Tensor:
        """Random ones (n, C, H, W) uint8."""
        return torch.randint(256, (n, *self.spec.shape), dtype=torch.uint8, device=self.device)


class Step:
    """Forward, backward, fused AdamW: the training loop without anything around it."""

    def __init__(self, case: Case, model: nn.Module, precision: str) -> None:
        self.case, self.model, self.precision = case, model, precision
        self.optimizer = AdamW().optimizer(model, fused=True)

    def __call__(self, x: Tensor) -> None:
        """One step on a batch (B, C, H, W)."""
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            loss = self.model.objective(x)["loss"].mean()  # type: ignore[operator]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def ceilings(device: str, size: int, rounds: int) -> dict[str, Any]:
    """FLOP/s of a square matrix product, by precision."""

    def product(dtype: torch.dtype) -> Callable[[], Any]:
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        return lambda: a @ b

    times = interleaved({name: product(dtype) for name, dtype in DTYPES.items()}, rounds, device)
    return {name: summary([2 * size**3 / t for t in seconds]) for name, seconds in times.items()}


def training(case: Case, batch: int, rounds: int, ceiling: dict[str, Any]) -> list[dict[str, Any]]:
    """Images per second of the bare loop in float32 and in what `trainer.precision=auto` picks here."""
    x, precisions = case.images(batch), sorted({"32-true", Plan.of(case.config().trainer).precision})
    steps = {p: Step(case, case.build(), p) for p in precisions}
    flops = flops_of(lambda: steps["32-true"](x)) / batch
    times = interleaved({p: lambda step=step: step(x) for p, step in steps.items()}, rounds, case.device)  # type: ignore[misc]
    return [
        {
            **case.name, "batch": batch, "precision": p,
            "images_per_second": summary([batch / t for t in times[p]]),
            "flops_per_image": flops,
            "share_of_ceiling": summary([batch * flops / t / ceiling[p]["median"] for t in times[p]]),
        }
        for p in precisions
    ]  # fmt: skip


def sampling(case: Case, n: int, rounds: int, ceiling: dict[str, Any], positions: int) -> list[dict[str, Any]]:
    """n images from the cache, beside one forward pass of them, recomputation, and completion of the lower halves.

    Recomputation is timed at `positions` of its T steps, each a forward pass, the head and a draw, and scaled.
    """
    model, x = _warm(case), case.images(n).long()
    known = torch.zeros(n, *x.shape[2:], dtype=torch.bool)
    known[:, : x.shape[2] // 2] = True
    slow = Recompute.start(model.net, n, x.device)
    steps = slow.steps.shape[1]
    noise = torch.rand(n, model.head.noise_size, device=case.device)

    def recompute() -> None:
        for t in torch.linspace(0, steps - 1, positions).long().tolist():
            slow.t = t
            h, _ = Recompute.step(model.net, None, slow)
            slow.steps[:, t] = model.head(h).sample(noise)

    with torch.inference_mode():
        flops = flops_of(lambda: model.net(x))
        times = interleaved(
            {
                "sample": lambda: model.sample(n),
                "forward": lambda: model.net(x),
                "recompute": recompute,
                "complete": lambda: model.complete(x, known),
            },
            rounds,
            case.device,
        )
    sample, recomputed = times["sample"], [t * steps / positions for t in times["recompute"]]
    record = {
        **case.name, "n": n,
        "seconds": summary(sample),
        "forward_seconds": summary(times["forward"]),
        "recompute_seconds": summary(recomputed),
        "speedup": summary([b / a for a, b in zip(sample, recomputed, strict=True)]),
        "forward_passes": summary([a / b for a, b in zip(sample, times["forward"], strict=True)]),
        "times_floor": summary([t * ceiling["32-true"]["median"] / flops for t in sample]),
        "half_completion": summary([b / a for a, b in zip(sample, times["complete"], strict=True)]),
    }  # fmt: skip
    return [record]


def memory(case: Case, what: str, n: int) -> dict[str, Any]:
    """Bytes at the peak of sampling n images or of training on them, in a process of its own: import included."""
    before = _peak()
    if what == "sampling":
        case.build().sample(n)
    else:
        step, x = Step(case, case.build(), "32-true"), case.images(n)
        for _ in range(2):  # the second has the optimiser's state
            step(x)
    return {**case.name, "what": what, "n": n, "peak_bytes": _peak(), "before_bytes": before}


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every variant in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            sync(device)
            start = time.perf_counter()
            run()
            sync(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def flops_of(run: Callable[[], Any]) -> float:
    """FLOPs of a call. Attention as plain products: the counter does not know the CPU's fused kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def summary(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _warm(case: Case) -> Any:
    """The model after one training step, which also makes the allocator keep its memory."""
    model = case.build()
    Step(case, model, "32-true")(case.images(BATCH))
    return model.eval()


def sync(device: str) -> None:
    """Wait for a GPU to finish; a CPU has finished when a call returns."""
    if device == "cuda":
        torch.cuda.synchronize()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
