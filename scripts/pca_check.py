"""Compare a linear autoencoder with PCA: the angle between the two subspaces, and both squared errors.

    python scripts/pca_check.py RUN [--split train] [--root FOLDER]

Baldi & Hornik 1989: the best linear code of L units spans the first L principal components, and its mean squared error
is the sum of the remaining eigenvalues. PCA is computed on the same images, centred; in the autoencoder the biases do
the centring. Images are scaled to [0, 1] and flattened, N x D. Errors are summed over an image, so they are twice the
loss.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from torch import Tensor

import genlab
from genlab.build import build_data, read_checkpoint


@dataclass(frozen=True)
class Check:
    """`angle`: largest principal angle, radians. `error`, `least`: squared error per image of the model and of PCA."""

    angle: float
    error: float
    least: float

    @property
    def excess(self) -> float:
        """How far the error is above that of PCA, as a share of the latter."""
        return self.error / self.least - 1


@torch.no_grad()
def check(model: torch.nn.Module, images: Tensor) -> Check:
    """A trained linear autoencoder, and images (N, C, H, W), integers. Float64 throughout."""
    model = model.double().eval()
    y = model.scaled(images).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(y.T, correction=0))
    origin = model.decode(torch.zeros(1, model.latent_dim, dtype=torch.double))
    columns = model.decode(torch.eye(model.latent_dim, dtype=torch.double)) - origin  # the image of each unit
    own = torch.linalg.qr(columns.flatten(1).T).Q
    kept = vectors[:, -model.latent_dim :]
    # The sine of the largest angle is the norm of what lies outside the other subspace. (A cosine is inexact near 1.)
    sine = torch.linalg.matrix_norm(own - kept @ (kept.T @ own), 2).item()
    reconstructed = torch.cat([model.decode(model.encode(part)).flatten(1) for part in images.split(2000)])
    error = (reconstructed - y).square().sum(1).mean().item()
    return Check(math.asin(min(sine, 1.0)), error, values[: -model.latent_dim].sum().item())


def main() -> None:
    """Print the angle and the errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--split", default="train")
    parser.add_argument("--weights", default="ema")
    parser.add_argument("--root", help="where the data is on this machine")
    args = parser.parse_args()
    model = genlab.load(args.run, weights=args.weights)
    data = OmegaConf.create(read_checkpoint(args.run)[1]["data"])
    result = check(model, build_data({**data, "root": args.root or data.root}).split(args.split).images)
    print(f"{args.split}: largest principal angle {result.angle:.2e} rad from the {model.latent_dim} first components")
    print(f"squared error per image {result.error:.5f}, of PCA {result.least:.5f}: {result.excess:+.2e} relative")


if __name__ == "__main__":
    main()
