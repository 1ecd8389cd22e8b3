"""Layer-wise pretraining: one layer at a time, on the clean code below it; then everything; wherever it is resumed."""

from __future__ import annotations

import pytest
import torch

from genlab.codes import Dense, Masking
from genlab.core import ImageSpec, RequestError
from genlab.models import Autoencoder, StackedAutoencoder
from genlab.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

SPEC = ImageSpec(1, 4, 5)


def stacked(cls=StackedAutoencoder, **parts):
    """Three layers each way: 20-7-6-3-6-7-20."""
    torch.manual_seed(0)
    more = {"pretrain_steps": 2} if cls is StackedAutoencoder else {}
    parts = {
        "encoder": lambda **k: MLPEncoder(**k, hidden=(7, 6)),
        "decoder": lambda **k: MLPDecoder(**k, hidden=(6, 7)),
        "code": lambda **k: Dense(**k, activation="relu"),
        "latent_dim": 3, "corruption": Masking(share=0.3), **more, **parts,
    }  # fmt: skip
    return cls(SPEC, **parts)


def images(n=6):
    """Random ones."""
    return torch.randint(256, (n, *SPEC.shape), generator=torch.Generator().manual_seed(1))


def trained(made):
    """Names of the weights that one training batch moves."""
    made.zero_grad()
    made.objective(images())["loss"].mean().backward()
    return {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def pair(layer):
    """A layer of the encoder and its mirror image."""
    layers = (f"encoder.layers.{layer}", f"decoder.layers.{2 - layer}")
    return {f"{name}.{kind}" for name in layers for kind in ("weight", "bias")}


def test_each_layer_has_its_turn_and_then_all_of_them():
    made = stacked().train()
    turns = [trained(made) for _ in range(8)]
    assert turns[0] == turns[1] == pair(0)
    assert turns[2] == turns[3] == pair(1)
    assert turns[4] == turns[5] == pair(2)
    assert turns[6] == turns[7] == {name for name, _ in made.named_parameters()}


def test_a_layer_reconstructs_the_clean_code_below_it():
    made = stacked(corruption=None).train()
    made.step += 2
    found = made.objective(images())
    (first, second, _), (*_, up, _) = made.encoder.layers, made.decoder.layers
    below = first(made.scaled(images()).flatten(1)).relu()
    expected = (up(second(below).relu()) - below).square().sum(1) / 2
    torch.testing.assert_close(found["loss"], expected)
    assert found["layer"].tolist() == [1.0] * 6


def test_what_is_corrupted_is_the_code_below():
    seen = []

    class Spy(Masking):
        def forward(self, y):
            seen.append(y.detach().clone())
            return super().forward(y)

    made = stacked(corruption=Spy(share=0.3)).train()
    made.step += 4
    made.objective(images())
    h = made.scaled(images()).flatten(1)
    for layer in made.encoder.layers[:2]:
        h = layer(h).relu()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], h)


def test_judged_as_a_whole_and_without_advancing():
    made, whole = stacked().eval(), stacked(Autoencoder).eval()
    whole.load_state_dict({k: v for k, v in made.state_dict().items() if k != "step"})
    for key, value in whole.objective(images()).items():
        torch.testing.assert_close(made.objective(images())[key], value)
    assert made.step == 0


def test_no_pretraining_is_an_autoencoder():
    made, whole = stacked(pretrain_steps=0).train(), stacked(Autoencoder).train()
    torch.manual_seed(3)
    ours = made.objective(images())["loss"]
    torch.manual_seed(3)
    torch.testing.assert_close(ours, whole.objective(images())["loss"])


def test_the_turn_is_in_the_state():
    made, again = stacked().train(), stacked().train()
    for _ in range(3):
        made.objective(images())
    again.load_state_dict(made.state_dict())
    assert trained(again) == pair(1)


@pytest.mark.parametrize(
    "parts",
    [
        {"decoder": lambda **k: MLPDecoder(**k, hidden=(7, 6))},
        {"tied": True},
        {
            "encoder": lambda **k: ConvEncoder(**k, widths=(4,)),
            "decoder": lambda **k: ConvDecoder(**k, widths=(4,)),
        },
        {"pretrain_steps": -1},
    ],
)
def test_what_cannot_be_pretrained_is_refused(parts):
    with pytest.raises(RequestError):
        stacked(**parts)
