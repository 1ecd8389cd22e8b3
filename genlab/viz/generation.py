"""Pictures of how an autoregressive model generates: what a pixel sees, where it looks, in which order.

    receptive_field  the gradient of a pixel's features with respect to every pixel, layer by layer: how much each pixel
                     matters (Luo et al. 2016, arXiv:1701.04128), and which earlier pixels never do: the blind spot
    attention        attention weights of some pixels, for every layer and head
    order            images with the first pixels alone, then more of them, and -log2 p of each pixel given the earlier
                     ones

B images, H x W pixels, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.build.models import model_name
from genlab.core import RequestError
from genlab.measure.bits import in_bits
from genlab.viz.grids import MID_GREY, to_uint8
from genlab.viz.heat_maps import coloured
from genlab.viz.subject import Save, Subject, figure, labelled

SHARES = (0.25, 0.5, 0.75, 1.0)  # of an image, in the picture of the order
SAMPLES = 6  # images in the picture of the order
MOST_LAYERS = 6  # panels of a receptive field


def is_autoregressive(model: Any) -> bool:
    """Whether the model draws one step after another from a causal net."""
    return hasattr(getattr(model, "net", None), "receptive_field") and hasattr(model, "pixel_log_prob")


def receptive_field(subject: Subject) -> Save:
    """One panel for each of some layers, for the pixel in the middle."""
    model = autoregressive(subject)
    spec, net = model.spec, model.net
    row, column = spec.height // 2, spec.width // 2
    names, maps = _influences(subject, row, column)
    declared = net.receptive_field(row, column)
    earlier = torch.arange(spec.height * spec.width).view(spec.height, spec.width) < row * spec.width + column
    return figure(_fields(names, maps, (row, column), earlier & ~declared, model_name(model)))


def _influences(subject: Subject, row: int, column: int) -> tuple[list[str], list[Tensor]]:
    """(names of some layers, how much every pixel matters for the layer's features at the pixel, (H, W) each)."""
    model, x = subject.model, subject.images[:8].to(subject.model.device)
    context = None if subject.context is None else subject.context[:8].to(model.device)
    read: list[Tensor] = []

    def watch(module: Any, inputs: Any, out: Tensor) -> Tensor:
        read.append(out.detach().requires_grad_())
        return read[-1]

    hook = model.net.values.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            layers = model.features(x, context)
            layers = {name: out for name, out in layers.items() if out.ndim == 4 or out.shape[1] > 1}
            chosen = sorted({round(i * (len(layers) - 1) / (MOST_LAYERS - 1)) for i in range(MOST_LAYERS)})
            maps = []
            for name in (names := [list(layers)[i] for i in chosen] if layers else []):
                maps.append(_influence(_at(layers[name], row, column, model.spec), read[0]))
    finally:
        hook.remove()
    return names, maps


def _influence(features: Tensor, values: Tensor) -> Tensor:
    """The size of the gradient of features (B, D) with respect to the values read (B, CE, H, W): (H, W)."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(values.shape[2:], dtype=torch.double)
    for _ in range(4):  # a single direction may cancel out
        direction = torch.randn(features.shape, generator=generator).to(features)
        (gradient,) = torch.autograd.grad((features * direction).sum(), values, retain_graph=True, allow_unused=True)
        if gradient is not None:
            total += gradient.double().abs().sum((0, 1)).cpu()
    return total


def _at(out: Tensor, row: int, column: int, spec: Any) -> Tensor:
    """Features (B, D) of a pixel in the output of a layer, (B, D, h, w) or (B, T, D)."""
    if out.ndim == 4:  # a layer of lower resolution has fewer places
        return out[:, :, row * out.shape[2] // spec.height, column * out.shape[3] // spec.width]
    return out[:, (row * spec.width + column) * out.shape[1] // (spec.height * spec.width)]


def attention(subject: Subject) -> Save:
    """A row for each layer and head, a column for each of some pixels."""
    model = autoregressive(subject)
    if not hasattr(model.net, "attention_weights"):
        raise RequestError(f"{model_name(model)} has no attention: train model=pixel_transformer or model=pixelsnail")
    spec, device = model.spec, model.device
    x = subject.images[:1].to(device)
    condition = None if subject.context is None else model.context(subject.context[:1].to(device))
    layers = model.net.attention_weights(x, condition)
    places = [(spec.height * a // 4, spec.width * b // 4) for a, b in ((1, 2), (2, 1), (2, 2), (3, 2))]
    picture = to_uint8(x, spec)[0].long()
    picture = picture if spec.channels == 3 else picture[:1].expand(3, -1, -1)
    rows, sheet = [], []
    for i, weights in enumerate(layers):  # (1, heads, T, T)
        for head in range(weights.shape[1]):
            rows.append(f"layer {i}\nhead {head}")
            maps = torch.stack([weights[0, head, r * spec.width + c].view(spec.shape[1:]) for r, c in places])
            tiles = coloured(maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12), 1.0)
            for tile, (r, c) in zip(tiles, places, strict=True):
                tile[:, r, c] = torch.tensor([0, 255, 255])
            sheet.append(torch.cat([picture[None], tiles]))
    columns = ["image", *(f"({r}, {c})" for r, c in places)]
    return labelled(torch.stack(sheet), rows, columns, below="where the pixel (row, column) looks")


def order(subject: Subject) -> Save:
    """A row for each of some samples."""
    model = autoregressive(subject)
    spec = model.spec
    context = None if subject.context is None else subject.context[:SAMPLES].to(model.device)
    count = SAMPLES if context is None else len(context)
    x = model.sample(count, context=context, seed=0)
    bits = in_bits(model.pixel_log_prob(x, context).double()).cpu()
    whole = to_uint8(x, spec).long()
    whole = whole if spec.channels == 3 else whole[:, :1].expand(-1, 3, -1, -1)
    place = torch.arange(spec.height * spec.width).view(spec.height, spec.width)
    parts = [torch.where(place < share * place.numel(), whole, MID_GREY) for share in SHARES]
    sheet = torch.stack([*parts, coloured(bits, float(bits.quantile(0.99).clamp_min(1e-9)))], 1)
    columns = [*(f"{share:.0%}" for share in SHARES), "bits"]
    below = f"bits of a pixel: 0 (black) to {bits.quantile(0.99):.2g}"
    return labelled(sheet, [f"{each:.0f} bits" for each in bits.sum((1, 2)).tolist()], columns, below=below)


def autoregressive(subject: Subject) -> Any:
    """The model, which must generate step by step from a causal net."""
    if not is_autoregressive(subject.model):
        raise RequestError(
            f"{model_name(subject.model)} does not generate pixel by pixel: choose an autoregressive model"
        )
    return subject.model


def _fields(names: list[str], maps: list[Tensor], pixel: tuple[int, int], blind: Tensor, title: str) -> Any:
    """Panels of log-influence, with the blind spot in red and the pixel itself in cyan."""
    from matplotlib.figure import Figure

    names, maps = [*names, "never seen"], [*maps, torch.zeros_like(blind, dtype=torch.double)]
    drawn = Figure(figsize=(2.1 * len(maps), 2.6), dpi=100)
    for axes, name, influence in zip(drawn.subplots(1, len(maps), squeeze=False)[0], names, maps, strict=True):
        reached = influence > 0
        shade = torch.zeros_like(influence)
        if reached.any():
            logs = influence[reached].log10().clamp_min(influence.max().log10() - 6)
            shade[reached] = 0.25 + 0.75 * (logs - logs.min()) / (logs.max() - logs.min()).clamp_min(1e-9)
        colours = torch.stack([shade * 0.95, shade * 0.8, shade * 0.45], -1)
        if name == "never seen":
            colours = torch.full((*blind.shape, 3), 0.12, dtype=torch.double)
            colours[blind] = torch.tensor([0.9, 0.25, 0.2], dtype=torch.double)
        colours[pixel] = torch.tensor([0.0, 1.0, 1.0], dtype=torch.double)
        axes.imshow(colours.numpy(), interpolation="nearest")
        axes.set_title(f"{name}: {int(blind.sum() if name == 'never seen' else reached.sum())} pixels", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    drawn.suptitle(f"{title}: which pixels reach the marked one (brighter: matters more)", fontsize=10)
    drawn.tight_layout()
    return drawn
