"""The inverse problem of Bishop 1994 (NCRG/94/004, sec. 5) for mixture density networks: one y has several answers x.

    y = x + 0.3 sin(2 pi x) + noise,  noise uniform in +-0.1;   what was x, given y?

Near y = 0.5 there are three answers, and the mean that least squares learns is none of them. Here the model is
genlab's, on images of one pixel: x and y are integers, so the numbers are exact probabilities, in nats. The script
trains M = 1 and M = 3 Gaussians. It prints the log-likelihood of held-out points under each, and under the true
distribution. It draws the data, both predictive distributions and both means.

    python scripts/mixture_density.py [docs/mixture-density.png]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from genlab.core import ImageSpec
from genlab.models import MixtureDensity
from genlab.nets import MLPEncoder

LEVELS = 256  # of x in [0, 1] and of y in [-0.1, 1.1]
SPEC = ImageSpec(1, 1, 1, LEVELS, context=ImageSpec(1, 1, 1, LEVELS))
TRAIN, TEST, STEPS, HIDDEN = 1000, 10000, 1000, [64, 64]


def levels(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform numbers -> integers x and y."""
    y = x + 0.3 * (2 * math.pi * x).sin() + 0.2 * noise - 0.1
    return (x * LEVELS).long(), ((y + 0.1) / 1.2 * LEVELS).long().clamp(0, LEVELS - 1)


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of one pixel (n, 1, 1, 1): x and y."""
    x, noise = torch.rand(2, n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    return levels(x, noise)


def truth() -> float:
    """The best possible log-likelihood, nats per point: the mean of log P(x | y) over a fine grid of points."""
    fine = (torch.arange(40 * LEVELS) + 0.5) / (40 * LEVELS)
    x, y = levels(fine[:, None].expand(-1, 1000), ((torch.arange(1000) + 0.5) / 1000).expand(len(fine), -1))
    joint = torch.bincount((x * LEVELS + y).flatten(), minlength=LEVELS**2).view(LEVELS, LEVELS).double() / x.numel()
    conditional = joint / joint.sum(0)
    return joint[joint > 0].dot(conditional[joint > 0].log()).item()


def trained(components: int, x: Tensor, y: Tensor) -> MixtureDensity:
    """M Gaussians by a small net, on all points at every step."""
    torch.manual_seed(0)
    model = MixtureDensity(
        SPEC, net=lambda **sizes: MLPEncoder(hidden=HIDDEN, **sizes), components=components, floor=0.002
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        model.objective(x, y)["loss"].mean().backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predictive(model: MixtureDensity) -> tuple[np.ndarray, np.ndarray]:
    """P(x | y) of all levels, (x, y), and the mean of x for every y, in levels."""
    every = torch.arange(LEVELS)
    x, y = every.repeat(LEVELS).view(-1, 1, 1, 1), every.repeat_interleave(LEVELS).view(-1, 1, 1, 1)
    p = model.log_prob(x, y).exp().view(LEVELS, LEVELS)
    return p.T.numpy(), (p * (every + 0.5)).sum(1).numpy()


def main(path: Path) -> None:
    """Train, print, draw."""
    torch.set_num_threads(1)
    x, y = points(TRAIN, 0)
    held_x, held_y = points(TEST, 1)
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    low, high = -0.1, 1.1
    at = low + (np.arange(LEVELS) + 0.5) / LEVELS * (high - low)
    axes[0].scatter(low + (y.flatten() + 0.5) / LEVELS * (high - low), (x.flatten() + 0.5) / LEVELS, s=3)
    axes[0].set(title=f"{TRAIN:,} points (at best {truth():.3f} nats)", xlabel="y, which is given", ylabel="x")
    print(f"the true distribution: {truth():.4f} nats per point")
    for axis, components in zip(axes[1:], (1, 3), strict=True):
        model = trained(components, x, y)
        p, mean = predictive(model)
        with torch.no_grad():
            nats = model.log_prob(held_x, held_y)
        error = nats.std().item() / math.sqrt(TEST)
        print(f"M = {components}: {nats.mean():.4f} ± {error:.4f} nats per point, {TEST:,} points held out")
        axis.imshow(  # the square root of p; the first and last row hold the tails and are left out of the colour scale
            p**0.5,
            origin="lower",
            extent=(low, high, 0, 1),
            aspect="auto",
            cmap="Greys",
            vmax=np.quantile(p[1:-1], 0.99) ** 0.5,
        )
        axis.plot(at, mean / LEVELS, color="tab:red", label="mean of x given y")
        what = "one Gaussian" if components == 1 else f"{components} Gaussians"
        axis.set(title=f"{what}: {nats.mean():.3f} nats", xlabel="y", xlim=(low, high), ylim=(0, 1))
        axis.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/mixture-density.png"), help="a PNG file")
    main(parser.parse_args().out)
