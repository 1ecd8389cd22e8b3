"""The averaged weights follow their formula, and they are the ones that are evaluated."""

from __future__ import annotations

import torch
from torch import nn
from trainees import Tiny, checkpoint, trained

from genlab.build import restore
from genlab.core import ImageSpec
from genlab.nets.layers.masked import MaskedConv2d
from genlab.train import ema
from genlab.train.buffers import varying
from genlab.train.gradient_guard import GradientGuard
from genlab.train.learner import Learner
from genlab.train.optim import AdamW


def test_closed_form():
    """e_T = prod d_t w_0 + sum_t (1 - d_t) prod_{s > t} d_s w_t."""
    decay, history = 0.6, [torch.randn(3, 2, dtype=torch.double) for _ in range(21)]
    model = nn.Linear(2, 3, bias=False, dtype=torch.double)
    model.weight.data = history[0].clone()
    average = ema.frozen_copy(model)
    for t, weight in enumerate(history[1:], start=1):
        model.weight.data = weight.clone()
        ema.update(average, model, ema.decay_at(t, decay))
    d = [1.0] + [min(decay, (1 + t) / (10 + t)) for t in range(1, 21)]
    share = [(1 - d[t] if t else 1.0) * torch.tensor(d[t + 1 :], dtype=torch.double).prod() for t in range(21)]
    assert abs(sum(share) - 1) < 1e-12
    expected = sum(s * w for s, w in zip(share, history, strict=True))
    torch.testing.assert_close(average.weight, expected, rtol=1e-12, atol=1e-12)
    assert d[1] < d[2] < d[5] < d[20] == decay  # it warms up, then stays


def test_frozen_and_buffers_copied():
    model = nn.BatchNorm1d(4)
    average = ema.frozen_copy(model)
    model(torch.randn(8, 4) + 5)
    ema.update(average, model, 0.9)
    assert torch.equal(average.running_mean, model.running_mean)
    assert int(average.num_batches_tracked) == 1
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())


def test_constants_are_neither_saved_nor_copied_but_running_statistics_are():
    model = nn.Sequential(MaskedConv2d("A", 3, 3, 3, groups=1), nn.BatchNorm2d(3))
    mask, mean = model[0].mask, model[1].running_mean
    assert {id(b) for b in varying(model)} == {id(b) for b in model[1].buffers()}
    average = ema.frozen_copy(model)
    mask.fill_(7)
    mean.fill_(7)
    ema.copy_buffers(average, model)
    assert average[0].mask.max() == 1
    assert average[1].running_mean.min() == 7
    guard = GradientGuard(max_bad_steps=1)
    guard.begin_step(model)
    assert sum(saved.numel() for saved in guard._buffers) == 3 + 3 + 1
    mean.fill_(9)
    guard.undo(model)
    assert mean.min() == 7


def learner(decay):
    spec = ImageSpec(1, 4, 4)
    return Learner(Tiny(spec), spec, AdamW(), max_steps=1, decay=decay)


def test_the_evaluation_model_is_the_average_in_evaluation_mode():
    with_average, without = learner(0.9), learner(0)
    for parameter in with_average.ema.parameters():
        parameter.data.fill_(0.5)
    with_average.train()
    assert not with_average.ema.training  # the average never trains
    with torch.autocast("cpu", dtype=torch.bfloat16), with_average.evaluation_model() as model:
        assert model is with_average.ema
        assert not model.training
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    without.train()
    with without.evaluation_model() as model:
        assert model is without.model
        assert not model.training
    assert without.model.training
    assert (with_average.weights, without.weights) == ("ema", "raw")


def test_validation_and_test_use_the_average(tmp_path):
    """The recorded number is that of the averaged weights, and differs from that of the raw weights."""
    folder = trained(tmp_path / "run", trainer__max_steps=5, train__ema=0.9)
    best = checkpoint(folder, "best")
    from trainees import DotsData

    from genlab.measure.evaluation import evaluate_split

    data = DotsData(validation=16, batch_size=8, eval_batch_size=5, seed=3)
    values = {}
    for weights in ("ema", "raw"):
        model, _ = restore(folder, weights=weights, trust=["trainees"])
        values[weights] = evaluate_split(model, data, "valid", weights=weights, seed=3).value
    assert best["callbacks"]["Validation"]["value"] == values["ema"] != values["raw"]
    assert best["callbacks"]["Validation"]["details"]["weights"] == "ema"
    assert {key.split(".")[0] for key in best["state_dict"]} == {"model", "ema"}


def test_no_average(tmp_path):
    best = checkpoint(trained(tmp_path / "run", trainer__max_steps=5, train__ema=0), "best")
    assert {key.split(".")[0] for key in best["state_dict"]} == {"model"}
    assert best["callbacks"]["Validation"]["details"]["weights"] == "raw"
