"""A reliability diagram: how often is a classifier right when it is so sure?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure


def reliability(bins: Sequence[Any], title: str) -> Figure:
    """Bins of images (`measure.bayes.Bin`) -> accuracy against confidence; the area of a dot grows with its images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), dpi=100)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    total = sum(b.count for b in bins)
    sizes = [20 + 400 * b.count / total for b in bins]
    axes.scatter([b.confidence for b in bins], [b.accuracy for b in bins], s=sizes, color="C0", alpha=0.7)
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05), xlabel="largest p(y | x), mean of a bin", ylabel="accuracy")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
