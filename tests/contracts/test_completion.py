"""Completion: known pixels stay, a known prefix is exact, elsewhere weighted particles find the conditional."""

from __future__ import annotations

import pytest
import torch
import zoo

LISTED = {name: zoo.LISTABLE[name] for name in ("2x2 binary", "2x1, 2 channels, 3 levels")}
EVERY_NET = pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY, "rgb": zoo.RGB}))


def conditional(made, spec, x, known):
    """Probability of every image given the known pixels of x."""
    images = zoo.every_image(spec)
    agree = ((images == x) | ~known[None]).flatten(1).all(1)
    p = made.log_prob(images).exp().detach() * agree
    return p / p.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "which"), zoo.alternating(zoo.in_turn(zoo.nets_and_heads(LISTED)), ("first",), ("last",))
)
def test_completions_follow_the_conditional(case, which):
    made, spec = case.tiny(), case.spec
    x = made.sample(1, generator=torch.Generator().manual_seed(1))
    known = torch.zeros(spec.height, spec.width, dtype=torch.bool)
    known.view(-1)[0 if which == "first" else -1] = True
    n, generator = 250, torch.Generator().manual_seed(2)
    done = [  # a few at a time: a cache takes memory for every particle
        made.complete(
            x.expand(n, -1, -1, -1), known.expand(n, -1, -1),
            particles=1 if which == "first" else 32, generator=generator,
        )
        for _ in range(4)
    ]  # fmt: skip
    images = torch.cat([each.images for each in done])
    assert (images == x)[:, :, known].all()
    distance = (zoo.histogram(images, spec) / len(images) - conditional(made, spec, x[0], known)).abs().sum() / 2
    assert distance < 0.08  # 1,000 draws of at most nine images
    if which == "first":
        assert all(each.effective_particles is None for each in done)
    else:  # the weights matter, unless a net is so sure that all particles drew the same
        assert any((each.effective_particles < 32).any() for each in done)


@EVERY_NET
def test_known_pixels_never_change_and_masks_may_differ_between_images(case):
    made, spec = case.tiny(scale=0.3), case.spec
    x = zoo.random_images(spec, 4)
    known = torch.rand(4, spec.height, spec.width, generator=torch.Generator().manual_seed(0)) < 0.5
    known[3] = False
    done = made.complete(x, known, particles=3, generator=torch.Generator().manual_seed(0)).images
    keep = known[:, None].expand_as(x)
    assert torch.equal(done[keep], x[keep])
    assert done.min() >= 0
    assert done.max() < spec.levels


@EVERY_NET
def test_everything_known_comes_back_and_seeds_decide(case):
    made, spec = case.tiny(scale=0.3), case.spec
    x = zoo.random_images(spec, 2)
    everything = torch.ones(2, spec.height, spec.width, dtype=torch.bool)
    assert torch.equal(made.complete(x, everything).images, x)
    one, same, other = (made.sample(6, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@EVERY_NET
def test_prefilled_rows_equal_stepped_rows(case):
    """A known top half drawn from the prefill equals the same completion forced through every step."""
    made, spec = case.tiny(scale=0.3), case.spec
    x = zoo.random_images(spec, 3)
    known = torch.zeros(3, spec.height, spec.width, dtype=torch.bool)
    known[:, : spec.height // 2 + 1] = True
    known[0, -1, -1] = True  # a late known pixel in one image only: all go through the particle loop
    one = made.complete(x, known, particles=1, generator=torch.Generator().manual_seed(5)).images
    known[0, -1, -1] = False
    two = made.complete(x, known, particles=1, generator=torch.Generator().manual_seed(5)).images
    assert torch.equal(one[1:], two[1:])
