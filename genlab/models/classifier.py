"""A classifier p(label | image). It is not a generative model; its features measure the quality of samples.

A network turns an image into features, and one linear layer turns features into logits. The loss is the cross entropy
in nats. `genlab quality` compares images in the space of the last features (`genlab/measure/quality.py`). They are
learnt on the same data set, so the numbers cannot be compared with those of Inception features.

In training every image is shifted by up to `shift` pixels in both directions; its border is repeated beyond the edge.

B images, D features, M classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.core import ImageSpec, Reading, RequestError
from genlab.models.base import ImageModel

CONFIGURABLE = {"model": ("ImageClassifier",)}


class ImageClassifier(ImageModel):
    """A network and a linear layer. `net(spec=)` is a constructor; `width` of the network is D."""

    conditioning = "label"  # the objective gets the label of every image as its context
    signed = True
    adamw_weights = ("last.weight",)  # the output layer, see train/muon.py

    def __init__(self, spec: ImageSpec, *, net: Callable[..., nn.Module], shift: int = 0) -> None:
        super().__init__(spec)
        if spec.classes < 2:
            raise RequestError("a classifier needs images with labels of at least 2 classes, and this data has none")
        if not 0 <= shift < min(spec.height, spec.width):
            raise RequestError(f"shift={shift} is not possible with images of {spec.height}x{spec.width} pixels")
        self.shift = shift
        self.net = net(spec=spec)
        self.last = nn.Linear(self.net.width, spec.classes)  # type: ignore[arg-type]

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Images (B, C, H, W) and their labels (B,) -> "loss", nats, and "accuracy", 0 or 1, (B,) each."""
        if context is None:
            raise RequestError("a classifier learns from labels: pass them as the context")
        y = self.scaled(x)
        logits = self._logits(self.net(self._shifted(y) if self.training else y))
        right = (logits.argmax(1) == context).float()
        return {"loss": F.cross_entropy(logits, context, reduction="none"), "accuracy": right}

    def read(self, x: Tensor) -> Reading:
        """Images (B, C, H, W) -> their features (B, D) and log p(label | image), nats (B, M)."""
        h = self.net(self.scaled(x))
        return Reading(h, self._logits(h).log_softmax(1))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Input of the last layer, "penultimate" (B, D); it does not depend on a label."""
        return {"penultimate": self.net(self.scaled(x))}

    def _logits(self, h: Tensor) -> Tensor:
        """Features (B, D) -> (B, M), in the precision of the weights also under autocast."""
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.last(h.to(self.last.weight.dtype))
        return logits

    def _shifted(self, y: Tensor) -> Tensor:
        """Shift every image (B, C, H, W) by a random number of pixels. Noise comes from torch's global generator."""
        if not self.shift:
            return y
        n, (height, width), s = len(y), y.shape[2:], self.shift
        down, right = torch.randint(2 * s + 1, (2, n, 1), device=y.device)
        rows = down + torch.arange(height, device=y.device)
        columns = right + torch.arange(width, device=y.device)
        image = torch.arange(n, device=y.device)[:, None, None]
        padded = F.pad(y, (s, s, s, s), mode="replicate")
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
