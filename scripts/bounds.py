"""How tight the bounds of a trained model are: ELBO <= IWAE(10) <= IWAE(100) <= IWAE(1000), and the truth where known.

    python scripts/bounds.py RUN [--split test] [--draws 1000] [--limit N] [--root FOLDER]

All bounds come from the same draws of log w (Burda et al. 2016, arXiv:1509.00519): k of them make one draw of the bound
of k, and all groups of k are averaged. Nats an image, and bits/dim, +- the standard error over images. Of probabilistic
PCA (`model=ppca model.inference=encoder`) every draw is of the same y, whose density is known; so that is bounded, not
the mass of a cell.
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

ROWS = 1000  # images times draws at once: what fits a cache


@torch.no_grad()
def log_weights(model: torch.nn.Module, x: Tensor, draws: int) -> tuple[Tensor, Tensor | None]:
    """Integers (B, C, H, W) -> log w (draws, B), float64 nats, and the truth (B,) where it is known."""
    if isinstance(model, PPCA):
        y = model.dequantised(x)
        of, repeated, truth = model.log_weight, y.repeat(draws, 1), model.log_density(y).double()
    else:
        of, repeated, truth = model.log_prob, x.repeat(draws, 1, 1, 1), None  # type: ignore[operator, assignment]
    return of(repeated).double().view(draws, len(x)), truth


def bounds(log_w: Tensor, sizes: list[int]) -> Tensor:
    """log w (draws, B) -> mean over groups of the bound of k draws, for every k, (K, B)."""
    found = []
    for k in sizes:
        groups = log_w[: len(log_w) // k * k].view(-1, k, log_w.shape[1])
        found.append((groups.logsumexp(1) - math.log(k)).mean(0))
    return torch.stack(found)


def main() -> None:
    """Print a line a bound."""
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
    found, truths = [], []
    for x in images.split(max(1, ROWS // args.draws)):
        log_w, truth = log_weights(model, x, args.draws)
        found.append(bounds(log_w, sizes))
        truths += [] if truth is None else [truth]
    rows = {"ELBO" if k == 1 else f"IWAE({k})": of for k, of in zip(sizes, torch.cat(found, 1), strict=True)}
    rows |= {"exact": torch.cat(truths)} if truths else {}
    for name, nats in rows.items():
        bits = bits_per_dim(nats, model.spec)  # type: ignore[arg-type]
        error = nats.std().item() / math.sqrt(len(nats))
        print(
            f"{name}: {nats.mean().item():.4f} ± {error:.4f} nats, {bits.mean().item():.5f} bits/dim "
            f"({len(nats):,} {args.split} images)"
        )


if __name__ == "__main__":
    main()
