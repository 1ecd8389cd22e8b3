"""Muon: which weights it takes, its update, and everything that a run asks of an optimiser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from trainees import Crash, checkpoint, config, outcome, same, trained
from zoo import GREY, RGB, Case

from genlab.core import RequestError
from genlab.nets.layers.masked import MaskedConv2d
from genlab.processes import resume
from genlab.request.compose import Request
from genlab.train import muon
from genlab.train.optim import AdamW, Muon, settings

MUON = {"optim__kind": "muon", "optim__adam_lr": 0.01, "optim__momentum": 0.9}
NETS = ["pixelcnn", "gated_pixelcnn", "pixelcnnpp", "pixelsnail", "pixel_transformer", "row_lstm", "diagonal_bilstm"]
NETS += ["made"]


def case(net, spec=RGB, context="label"):
    """A small float32 model with a head that does not chain the colours, so that there are colour groups."""
    head = "logistic_mixture" if net == "pixelcnnpp" else "conditional_categorical" if net == "pixelsnail" else None
    head = head or ("conditional_categorical" if net == "pixel_transformer" else "categorical")
    variant = "-full" if net == "pixel_transformer" else ""
    return Case(net, variant, head, context, spec).tiny(dtype=torch.float)


def fill_gradients(model, seed=0):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


def singular_values(matrix):
    return torch.linalg.svdvals(matrix.double())


# ---- which weights


@pytest.mark.parametrize("net", NETS)
def test_every_weight_is_in_one_group(net):
    """Heads, embeddings, biases and the layers that read the image are for AdamW. What the nets list exists."""
    model = case(net, replace(RGB, levels=9))
    optimizer = Muon(weight_decay=0.1).optimizer(model, fused=True)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    matrices = {p for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    names = {name for name, p in model.named_parameters() if p in matrices}
    assert names
    assert not [name for name in names if name.startswith(("head.", "context.", "net.values.")) or "bias." in name]
    for module in model.modules():
        own = dict(module.named_parameters())
        assert not matrices & {own[name] for name in getattr(module, "adamw_weights", ())}
        for name, rows in getattr(module, "matrix_rows", {}).items():
            assert [len(matrix) for matrix in muon.layouts(model)[own[name]].matrices(own[name])] == rows
    channels = {model.net.values.channels, model.net.values.channels + 1}  # no other layer has as many inputs
    if net == "made":  # reads the whole image
        channels = {model.net.values.channels * model.spec.height * model.spec.width}
    reads = {name for name, p in model.net.named_parameters() if p.ndim > 1 and p.shape[1] in channels}
    assert reads == set(model.net.adamw_weights)


def test_matrices_within_a_weight():
    """Groups of a convolution, and rows that a module lists, are matrices; a single row or column is none."""
    net = nn.ModuleDict({
        "grouped": nn.Conv2d(8, 6, 3, groups=2, bias=False), "depthwise": nn.Conv2d(8, 8, 3, groups=8, bias=False),
        "table": nn.Embedding(5, 4), "column": nn.Linear(1, 4), "qkv": nn.Linear(4, 12, bias=False),
    })  # fmt: skip
    net.matrix_rows = {"qkv.weight": [4, 4, 4]}
    found = muon.layouts(net)
    assert set(found) == {net["grouped"].weight, net["qkv"].weight}
    for name, rows in (("grouped", [3, 3]), ("qkv", [4, 4, 4])):
        weight = net[name].weight
        matrices = found[weight].matrices(weight)
        assert [len(matrix) for matrix in matrices] == rows
        assert torch.equal(found[weight].weight(matrices, weight.shape), weight)


# ---- the update


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 5, 64)])
def test_singular_values_are_near_one(shape):
    """Of matrices of any size whose singular values are from 1 to 0.01."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.logspace(0, -2, min(shape[1:])) * torch.logspace(-3, 3, shape[0])[:, None]
    y = muon.orthogonalise(left * spectrum[:, None] @ right)
    values = singular_values(y)
    assert values.min() > 0.68
    assert values.max() < 1.2
    inner = left.mT @ y @ right.mT  # the singular vectors are the same
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)
    assert muon.orthogonalise(torch.zeros(shape)).abs().max() == 0


def test_a_matrix_with_a_mask_is_that_of_its_open_columns():
    """Without colour groups the singular values of the rest are near 1, with the scale of the rest."""
    conv = MaskedConv2d("B", 6, 8, 3, groups=1)
    before = conv.weight.detach().clone()
    fill_gradients(conv)
    Muon(lr=1.0).optimizer(conv, fused=True).step()
    moved = (before - conv.weight.detach()).flatten(1)
    open_columns = conv.mask.flatten(1).bool().all(0)
    assert (moved[:, ~open_columns] == 0).all()
    values = singular_values(moved[:, open_columns]) / (0.2 * 30**0.5)  # 8 rows, 6 x 5 columns
    assert values.min() > 0.68
    assert values.max() < 1.2


@pytest.mark.parametrize("net", ["pixelcnn", "gated_pixelcnn", "row_lstm", "diagonal_bilstm"])
def test_masked_weights_do_not_move(net):
    """With colour groups, whose masks depend on the row. Gradients are not zero anywhere here."""
    model = case(net)
    optimizer, layouts = Muon(lr=0.1).optimizer(model, fused=True), muon.layouts(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in range(2):
        fill_gradients(model, seed)
        optimizer.step()
    masked = 0
    for name, module in model.named_modules():
        mask = getattr(module, "mask", None)
        if mask is not None and module.weight in layouts:
            moved = module.weight.detach() != before[f"{name}.weight"]
            assert torch.equal(moved, mask.bool())
            masked += not mask.all()
    assert masked


def test_it_equals_torchs_muon(monkeypatch):
    reference = getattr(torch.optim, "Muon", None)
    if reference is None:
        pytest.skip("torch.optim.Muon is new in torch 2.9")
    monkeypatch.setattr(muon, "_precision", lambda x: torch.bfloat16)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 40, bias=False), nn.Linear(40, 24, bias=False))
    theirs = [p.detach().clone().requires_grad_() for p in net.parameters()]
    ours = Muon(lr=0.1, weight_decay=0.2, momentum=0.9).optimizer(net, fused=True)
    other = reference(theirs, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for seed in range(4):
        fill_gradients(net, seed)
        for p, q in zip(net.parameters(), theirs, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        other.step()
    for p, q in zip(net.parameters(), theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=0.01 * q.detach().abs().max().item())


@pytest.mark.parametrize("fused", [True, False])
def test_the_rest_equals_torchs_adamw(fused):
    """To the bit, weights without a gradient in one step included."""
    ours, theirs = (nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    a = Muon(adam_lr=0.01, weight_decay=0.1).optimizer(ours, fused=fused)
    b = AdamW(lr=0.01).optimizer(theirs, fused=fused)  # weight decay is for matrices alone
    for seed in range(3):
        for model, optimizer in ((ours, a), (theirs, b)):
            fill_gradients(model, seed)
            if seed == 1:
                model[0].weight.grad = None
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_loss_scaler_skips_a_step_that_overflows():
    net = nn.Linear(4, 4)
    optimizer, scaler = Muon().optimizer(net, fused=False), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = net.weight.detach().clone()
    for factor, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((net(torch.ones(2, 4)) * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(net.weight, before) is not moves


def test_the_loss_falls():
    model, x = case("gated_pixelcnn", GREY, "none"), torch.randint(4, (6, 1, 5, 4))
    optimizer, losses = Muon(lr=0.02, adam_lr=0.003).optimizer(model, fused=True), []
    for _ in range(30):
        losses.append(model.objective(x)["loss"].mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_two_players():
    """Each has matrices and others of its own, and the discriminator's rates keep the ratio."""
    g, d = (nn.Linear(2, 2) for _ in range(2))
    optimizer = Muon(lr=0.02, adam_lr=0.004, discriminator_lr=0.01).optimizer(g, fused=False, discriminator=d)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[p] for p in [*g.parameters(), *d.parameters()]] == pytest.approx([0.02, 0.004, 0.01, 0.002])
    fill_gradients(g)
    before = d.weight.detach().clone()
    optimizer.step()
    assert torch.equal(d.weight, before)
    assert d.weight not in optimizer.state


def test_spectral_norm_is_seen_through():
    net = nn.Sequential(spectral_norm(nn.Conv2d(2, 4, 3)), spectral_norm(nn.Linear(4, 1)))
    layouts = muon.layouts(net)
    assert [name for name, p in net.named_parameters() if p in layouts] == ["0.parametrizations.weight.original"]


# ---- runs


@pytest.mark.slow
def test_resumed_equals_uninterrupted(tmp_path):
    """With two batches in a step, a step that is skipped, averaged weights and clipping."""
    changes = {**MUON, "trainer__accumulate_grad_batches": 2, "data__poison": [4]}
    whole = trained(tmp_path / "whole", **changes)
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=17, **changes)
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(**changes)))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), outcome(whole))
    state = checkpoint(whole)
    assert state["genlab"]["bad_steps"] == 1
    moments = state["optimizer_states"][0]["state"].values()
    assert {tuple(own) for own in moments} == {("momentum",), ("step", "exp_avg", "exp_avg_sq")}
    # New settings are taken, another optimiser is not.
    resume.run(tmp_path / "run", ["trust=[trainees]", "trainer.max_steps=13", "optim.momentum=0.8"], "genlab resume")
    assert checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.8
    (whole / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    with pytest.raises(RequestError, match=r"another optimiser than that of config\.yaml.*init=RUN optim=muon"):
        resume.run(whole, ["trust=[trainees]", "trainer.max_steps=14"], "genlab resume")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer__strategy": "fsdp"}, "fsdp splits them over devices; use trainer.strategy=ddp"),
        ({"optim__kind": "moun"}, "did you mean 'muon'"),
        ({"optim__momentum": 1.0}, "optim.momentum=1.0"),
        ({"optim__adam_lr": 0}, "optim.adam_lr=0"),
        ({"optim__steps": 5}, "steps"),
    ],
)
def test_wrong_requests_create_nothing(tmp_path, changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        trained(tmp_path / "run", **{**MUON, **changes})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["optim=muon"], ["model=gan", "optim=muon", "optim.discriminator_lr=0.01"]])
def test_the_config_fits_the_code(words):
    made = settings(Request("train", [*words, "trainer=cpu"], command="").config().optim)
    assert isinstance(made, Muon)
    assert (made.lr, made.adam_lr) == (0.005, 0.003)
