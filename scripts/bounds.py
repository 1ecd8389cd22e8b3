"""How tight the bounds of a trained model are: ELBO <= IWAE(10) <= IWAE(100) <= IWAE(1000) <= exact where it is known.

    python scripts/bounds.py RUN [--split test] [--draws 1000] [--limit N] [--root FOLDER]

All bounds are computed from the same draws of log w (Burda et al. 2016, arXiv:1509.00519). A group of k draws gives one
value of the bound of k draws, and the values of all groups are averaged. Printed are nats for each image and bits/dim,
with the standard error over images.

For probabilistic PCA (`model=ppca model.inference=encoder`) every draw is of the same dequantised y, whose density is
known. So the bounds are on that density, not on the probability of the pixel values.
"""

from __future__ import annotations

import argparse
import math

import torch
from omegaconf import OmegaConf
from torch import Tensor

import genlab
from genlab.build import build_data, read_checkpoint
from genlab.measure.bits import bits_per_dim
from genlab.models import PPCA

ROWS = 1000  # images times draws that are computed at once: as many as fit into the processor's cache


@torch.no_grad()
def log_weights(model: torch.nn.Module, x: Tensor, draws: int) -> tuple[Tensor, Tensor | None]:
    """log w of images (B, C, H, W) in nats, (draws, B) float64, and the exact log-density (B,) where it is known."""
    if isinstance(model, PPCA):
        y = model.dequantised(x)
        log_w, exact = model.log_weight(y.repeat(draws, 1)), model.log_density(y).double()
    else:
        log_w, exact = model.log_prob(x.repeat(draws, 1, 1, 1)), None  # type: ignore[operator, assignment]
    return log_w.double().view(draws, len(x)), exact


def bounds(log_w: Tensor, sizes: list[int]) -> Tensor:
    """log w (draws, B) -> for each k in `sizes` the bound of k draws, averaged over groups of k draws: (K, B)."""
    means = []
    for k in sizes:
        groups = log_w[: len(log_w) // k * k].view(-1, k, log_w.shape[1])
        means.append((groups.logsumexp(1) - math.log(k)).mean(0))
    return torch.stack(means)


def main() -> None:
    """Print one line for each bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", help="where the data is on this machine")
    args = parser.parse_args()
    model = genlab.load(args.run)
    data = OmegaConf.create(read_checkpoint(args.run)[1]["data"])
    images = build_data({**data, "root": args.root or data.root}).split(args.split).images[: args.limit]
    torch.manual_seed(args.seed)
    sizes = [10**i for i in range(int(math.log10(args.draws)) + 1)]
    parts, exact_parts = [], []
    for x in images.split(max(1, ROWS // args.draws)):
        log_w, exact = log_weights(model, x, args.draws)
        parts.append(bounds(log_w, sizes))
        exact_parts += [] if exact is None else [exact]
    rows = {"ELBO" if k == 1 else f"IWAE({k})": values for k, values in zip(sizes, torch.cat(parts, 1), strict=True)}
    rows |= {"exact": torch.cat(exact_parts)} if exact_parts else {}
    for name, nats in rows.items():
        bits = bits_per_dim(nats, model.spec)  # type: ignore[arg-type]
        error = nats.std().item() / math.sqrt(len(nats))
        print(
            f"{name}: {nats.mean().item():.4f} ± {error:.4f} nats, {bits.mean().item():.5f} bits/dim "
            f"({len(nats):,} {args.split} images)"
        )


if __name__ == "__main__":
    main()
