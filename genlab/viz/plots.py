"""Plots of codes and of training, and image grids with named rows and columns, by matplotlib without a window.

Every function returns a figure; `save_figure` writes it, completely or not at all. N images, L units.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from genlab.core import ImageSpec, RequestError
from genlab.viz.grids import grid, save_whole_file

if TYPE_CHECKING:  # slow to import, and training without pictures does not need it
    from matplotlib.figure import Figure

DPI = 100


def save_figure(path: Path, figure: Figure) -> None:
    """Write the figure as a PNG."""
    save_whole_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def labelled_grid(
    images: Tensor, spec: ImageSpec, rows: Sequence[str], columns: Sequence[str], *, below: str = ""
) -> Figure:
    """Images (R * K, C, H, W) in R rows of K, with row names on the left, column names on top, `below` at the foot."""
    picture = grid(images, spec, len(columns))
    width, height = picture.size
    left, top, bottom = 110, 30, 30 if below else 10
    figure = _figure((left + width + 10) / DPI, (top + height + bottom) / DPI)
    w, h = figure.get_size_inches() * DPI
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.set_xticks([(i + 0.5) * width / len(columns) for i in range(len(columns))], columns, fontsize=8)
    axes.set_yticks([(i + 0.5) * height / len(rows) for i in range(len(rows))], rows, fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_frame_on(False)
    axes.set_xlabel(below, fontsize=9)
    return figure


def histogram(h: Tensor, split: str) -> Figure:
    """Two histograms of codes h (N, L): all values except exact zeros, and the mean of each unit over the images."""
    figure = _figure(9, 3.6)
    values, means = figure.subplots(1, 2)
    nonzero = h[h != 0]
    values.hist(nonzero.numpy(), bins=100, log=True, color="0.35")
    values.set(xlabel="value of a unit", ylabel="how many values")
    values.set_title(f"{1 - nonzero.numel() / h.numel():.1%} of the values are exactly 0, and left out", fontsize=10)
    means.hist(h.mean(0).numpy(), bins=50, color="0.35")
    means.set(xlabel="mean of a unit over the images", ylabel="how many units")
    means.set_title(f"{int((h == 0).all(0).sum())} of {h.shape[1]} units are 0 for every image", fontsize=10)
    figure.suptitle(f"Codes of {len(h):,} images of the {split} split", fontsize=11)
    return _tidy(figure)


def scatter(points: Tensor, variance_share: float | None, labels: Tensor, names: Sequence[str], split: str) -> Figure:
    """Points (N, 2) coloured by class.

    `labels` (N,) index the class names `names`, which are empty for data without classes. `variance_share`: share of
    the variance that the points keep if they are principal components; None if they are the code itself.
    """
    import matplotlib

    figure = _figure(6.6, 5.6)
    axes = figure.subplots()
    if names:
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "turbo"]
        for i, name in enumerate(names):
            of_class = points[labels == i]
            colour = colours(i if len(names) <= 10 else i / (len(names) - 1))
            axes.scatter(of_class[:, 0], of_class[:, 1], s=3, color=colour, linewidths=0, label=name)
        if len(names) <= 20:
            axes.legend(markerscale=4, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.scatter(points[:, 0], points[:, 1], s=3, color="0.35", linewidths=0)
    title = f"Codes of {len(points):,} images of the {split} split"
    if variance_share is None:
        axes.set(xlabel="unit 0", ylabel="unit 1")
    else:
        axes.set(xlabel="first principal component", ylabel="second principal component")
        title += f": two principal components, {variance_share:.0%} of the variance"
    axes.set_title(title, fontsize=10)
    return _tidy(figure)


def bars(kl: Tensor, split: str) -> Figure:
    """A bar for the KL of every unit (L,), in nats, the largest first."""
    figure = _figure(6.6, 3.6)
    axes = figure.subplots()
    axes.bar(range(len(kl)), kl.sort(descending=True).values.tolist(), color="0.35", width=1)
    axes.set(xlabel="units, the most telling first", ylabel="KL from the prior, nats an image")
    axes.set_title(f"{kl.sum():.1f} nats in all, of the {split} split", fontsize=10)
    return _tidy(figure)


SPARSITY = {  # for each panel the name of its axis, and the metrics drawn in it with their labels
    "share of units": {"active": "on, of an image", "dead_share": "never on, of the split"},
    "activation": {"mean_activation": "mean over units and images"},
}


def sparsity(metrics: Path) -> Figure:
    """Curves of a run's metrics.csv: active units and mean activation, and the target of the config if there is one.

    Raises RequestError if the file is missing or has no such metrics.
    """
    rows = _rows(metrics)
    panels = {
        axis: [name for name in metric_labels if any(_curve(rows, f"{split}/{name}") for split in ("train", "valid"))]
        for axis, metric_labels in SPARSITY.items()
    }
    panels = {axis: names for axis, names in panels.items() if names}
    if not panels:
        raise RequestError(f"{metrics} does not say how sparse a code is: only autoencoders log active units")
    figure = _figure(4.5 * len(panels), 3.6)
    for axes, (axis, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, colour in zip(names, ("C0", "C3"), strict=False):
            for split, style in (("train", "-"), ("valid", "o--")):
                if points := _curve(rows, f"{split}/{name}"):
                    label = f"{SPARSITY[axis][name]} ({split})"
                    axes.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1.2, label=label)
            if target := _curve(rows, f"valid/asked_{name}"):
                axes.axhline(target[-1][1], color=colour, linestyle=":", label="asked for")
        axes.set(xlabel="optimiser steps", ylabel=axis)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.legend(fontsize=8, frameon=False)
    return _tidy(figure)


class Curve(NamedTuple):
    """A curve (step, value). Curves of one `label` have one colour and one entry in the legend."""

    label: str
    points: Sequence[tuple[int, float]]


MOST_LABELS = 20  # in a legend
FIRST = 0.25  # of a curve's steps, whose values may lie outside the plot: they are often far from all others


def curves(panels: Mapping[str, Sequence[Curve]]) -> Figure:
    """Validation curves of several runs: a panel for each title, because other values do not compare."""
    import matplotlib

    figure = _figure(8, 4 * len(panels))
    for axes, (title, panel) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        labels = list(dict.fromkeys(curve.label for curve in panel))
        colours = matplotlib.colormaps["tab10" if len(labels) <= 10 else "turbo"]
        for i, label in enumerate(labels):
            colour = colours(i if len(labels) <= 10 else i / (len(labels) - 1))
            for number, curve in enumerate(each for each in panel if each.label == label):
                name = label if number == 0 else None
                axes.plot(*zip(*curve.points, strict=True), "o-", color=colour, markersize=2, linewidth=1, label=name)
        axes.set_xlabel("optimiser steps")
        axes.set_title(title, fontsize=10, loc="left")
        late = [value for _, points in panel for step, value in points if step >= FIRST * points[-1][0]]
        margin = 0.05 * (max(late) - min(late))
        if margin:
            axes.set_ylim(min(late) - margin, max(late) + margin)
        if any(labels) and len(labels) <= MOST_LABELS:
            axes.legend(fontsize=8, frameon=False)
    return _tidy(figure)


def _rows(metrics: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column name."""
    try:
        with open(metrics, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise RequestError(f"{metrics} is not there: the curves of a run are in its folder") from error


def _curve(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a value in column `name`."""
    return [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]


def _figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI)


def _tidy(figure: Figure) -> Figure:
    """The figure with a tight layout and without frames on the right and on top."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
