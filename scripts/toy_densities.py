"""Every family of genlab on one two-dimensional density: the pictures of all, with their divergence from the truth.

    python scripts/toy_densities.py [--shape moons] [--minutes 0.4] [--workers 2]    docs/toy-densities.png

Each model is trained for the same time by `genlab train data=toy2d`, with the words in `MODELS`. The divergence is that
of `genlab show what=density`: exact for exact models, an upper bound for bounds, and from drawings for a GAN.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import torch

import genlab
from genlab.data import Toy
from genlab.viz.density import divergence

PAGE = Path(__file__).resolve().parent.parent / "docs" / "toy-densities.png"
LEVELS = 32
COMMON = ["data=toy2d", f"data.levels={LEVELS}", "trainer=cpu", "logger=none", "train.sample_every=0"]
MODELS = {
    "made": ["optim.lr=3e-3"],
    "pixelcnn": ["optim.lr=3e-3"],
    "gated_pixelcnn": ["optim.lr=3e-3"],
    "pixelcnnpp": ["model.net.width=24", "model.net.depth=1", "model.net.resolutions=1", "optim.lr=3e-3"],
    "pixelsnail": ["optim.lr=3e-3"],
    "pixel_transformer": ["model.net.width=32", "model.net.depth=3", "optim.lr=3e-3"],
    "row_lstm": ["optim.lr=3e-3"],
    "diagonal_bilstm": ["optim.lr=3e-3"],
    "latent_gaussian": ["model.latent_dim=2", "optim.lr=2e-3"],
    "flow": ["model/coupling=mixture", "optim.lr=3e-3"],
    "gaussian_mixture": ["model.components=30"],
    "ppca": ["model.latent_dim=1"],
    "gan": [],
}


def trained(model: str, words: list[str], shape: str, minutes: float) -> tuple[torch.Tensor, float, str]:
    """Train one model: what `divergence` returns."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        length = [f"train.minutes={minutes}", f"hydra.run.dir={folder}/run"]
        settings = [*COMMON, f"data.shape={shape}", *length, *words]
        run = genlab.train(*settings, model=model)
        torch.manual_seed(0)
        with torch.no_grad():
            return divergence(genlab.load(run), genlab.data(run))


def main() -> None:
    """Train all of them and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="moons")
    parser.add_argument("--minutes", type=float, default=0.4)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        futures = {name: pool.submit(trained, name, words, args.shape, args.minutes) for name, words in MODELS.items()}
        results = {name: future.result() for name, future in futures.items()}
    truth = torch.from_numpy(Toy(2, args.shape, LEVELS).table)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "true": (truth, ""),
        **{n: (table, f"KL {kind}{bits:.3f} bits") for n, (table, bits, kind) in results.items()},
    }
    figure, axes = plt.subplots(2, 7, figsize=(14, 4.8), dpi=100)
    for place, (name, (table, text)) in zip(axes.flat, panels.items(), strict=True):
        place.imshow(table.T.numpy(), origin="lower", vmin=0, vmax=float(truth.max()))
        place.set_title(f"{name}\n{text}", fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
    figure.tight_layout()
    figure.savefig(PAGE)
    for name, (_, bits, kind) in results.items():
        print(f"{name}\tKL {kind}{bits:.4f} bits")


if __name__ == "__main__":
    main()
