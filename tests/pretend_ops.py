"""What every model is asked to do on the pretend device, and on the CPU, whose numbers must be the same to the bit.

`python tests/pretend_ops.py quick|rest|all|NAMES OUT.json [--cpu]` writes a row for each model and operation.
Training is the real thing: `train.fit`, with a Lightning Trainer, its callbacks and checkpoints, over random images.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import trainees
from pretend_models import GUARDED, QUICK, RESUMED, Subject, once, subjects

import genlab.models.flow
import genlab.models.gan
import genlab.nets  # now: a net is decorated with torch.inference_mode, which pretend.py replaces
from genlab.core import Coder, Completer, Denoiser, Features, RunError, Sampler
from genlab.data import ImageData
from genlab.measure.evaluation import evaluate_split
from genlab.train import callbacks, fit, learner
from genlab.train.checkpoint import read
from genlab.train.plan import Plan
from genlab.train.run import Run
from genlab.viz import generation
from genlab.viz import subject as viz

CPU = torch.device("cpu")
STEPS = 4
FEW = 2  # steps of the completions that search, instead of hundreds


# ---- the operations, each -> what it made, which must be the same on every device


def train(subject: Subject, folder: Path, device: torch.device, max_steps: int = STEPS, **hooks: Any) -> dict[str, Any]:
    """A run in `folder`, or what is left of it; its last checkpoint. `hooks` are given to `watched`."""
    data = subject.images()
    model = subject.model(data.spec)
    keys = {"log_every": 2, "valid_every": 2, "checkpoint_every": 2}
    keys |= {"sample_every": hooks.pop("pictures", 0), "max_bad_steps": hooks.pop("max_bad", 3)}
    changes = {f"train__{key}": value for key, value in keys.items()} | {"logger__kind": "none", "optim__lr": 1e-3}
    settings: Any = OmegaConf.to_container(trainees.config(**changes))
    plan = Plan("cpu" if device == CPU else "pretend", 1, 1, "auto", "32-true", max_steps, 1, 1.0)
    made: list[Tensor] = []
    with watched(data, **hooks):
        fit.fit(
            Run(model, data, settings, plan, folder, card={"config": "", "spec": {}, "version": "", "commit": ""}),
            draw=lambda path, images, *_, **__: made.append(images),
        )
    state = read(folder / "checkpoints" / "last.ckpt")
    return {"weights": state["state_dict"], "optimizer": state["optimizer_states"], "pictures": made}


@contextmanager
def watched(data: ImageData, steps: list[int] | None = None, interrupt: int = -1, spoil: int = -1) -> Iterator[None]:
    """Training in which the syncs of each step are appended to `steps`, those of callbacks left out; a signal arrives
    at step `interrupt`; the loss of batch `spoil` is not finite.
    """
    own, act, strategy = learner.Learner.optimizer_step, callbacks.Periodic.on_train_batch_end, fit._strategy
    learners = [learner.Learner, *learner.Learner.__subclasses__()]
    originals = [kind.__dict__.get("training_step") for kind in learners]

    def optimizer_step(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        if steps is not None and DEVICE is not None:
            steps.append(sum(pretend.syncs.values()))
        if self.global_step == interrupt:
            self.signal = 15

    def training_step(self: Any, batch: Any, number: int, kind: Any, original: Any) -> Any:
        loss = original(self, batch, number)
        if number == spoil and kind is type(self):
            sums = self._step_sums
            sums.sums = {name: value * torch.nan for name, value in sums.sums.items()}
        return loss

    def quietly(self: Any, *args: Any) -> None:
        with pretend.counted() if DEVICE is not None else nullcontext():
            act(self, *args)

    def _strategy(plan: Any, *args: Any, **kwargs: Any) -> Any:
        if plan.accelerator != "pretend":
            return strategy(plan, *args, **kwargs)
        data.move_to(DEVICE)  # when `fit` does it for a GPU
        return SingleDeviceStrategy(device=DEVICE)

    learner.Learner.optimizer_step = optimizer_step
    callbacks.Periodic.on_train_batch_end = quietly
    fit._strategy = _strategy
    for kind, original in zip(learners, originals, strict=True):
        if original is not None:
            kind.training_step = lambda self, b, n, k=kind, o=original: training_step(self, b, n, k, o)
    try:
        yield
    finally:
        learner.Learner.optimizer_step, callbacks.Periodic.on_train_batch_end = own, act
        fit._strategy = strategy
        for kind, original in zip(learners, originals, strict=True):
            if original is not None:
                kind.training_step = original


def resumed(subject: Subject, folder: Path, device: torch.device) -> dict[str, Any]:
    """A run that a signal interrupts between two log rows, and that goes on."""
    train(subject, folder, device, interrupt=1)
    found = train(subject, folder, device)
    del found["pictures"]
    return found


def guarded(subject: Subject, folder: Path, device: torch.device) -> dict[str, Any]:
    """A run with a step that is not finite, which is skipped; of one model also a run that ends with the verdict."""
    found = train(subject, folder / "a", device, spoil=2)
    if subject.name != GUARDED[0]:
        return found
    try:
        train(subject, folder / "b", device, spoil=2, max_bad=1)
    except RunError as error:
        return {**found, "said": "1 steps had a loss or gradient that is not finite" in str(error) or str(error)}
    raise AssertionError("the run did not stop")


def generator(kind: str, device: torch.device) -> torch.Generator | None:
    """None, one of the CPU, or one of the device."""
    if kind == "none":
        torch.manual_seed(11)
        return None
    made = torch.Generator() if kind == "cpu" or device == CPU else pretend.Generator()
    return made.manual_seed(11)


def operations(
    model: Any, data: ImageData, device: torch.device, generators: tuple[str, ...]
) -> dict[str, Callable[[], Any]]:
    """What a model can do without being trained. Images come from the host, as users give them."""
    batch = data.first("test", 3)
    context = fit_context(model, batch)
    x = batch.images
    n = len(x)
    prefix = torch.zeros(n, *x.shape[-2:], dtype=torch.bool)
    prefix[:, :1] = True
    scattered = torch.zeros_like(prefix)
    scattered[:, 1:, 1:3] = True
    scattered[0, 0, 0] = True
    ops: dict[str, Callable[[], Any]] = {}
    for kind in generators if isinstance(model, Sampler) else ():
        ops[f"sample, generator {kind}"] = lambda kind=kind: model.sample(
            n, context=context, temperature=0.9, generator=generator(kind, device)
        )
    for name, known in (("top known", prefix), ("some known", scattered)) if isinstance(model, Completer) else ():
        for kind in generators if known is prefix else ("cpu",):
            ops[f"complete, {name}, generator {kind}"] = lambda kind=kind, known=known: model.complete(
                x.long(), known, context=context, particles=3, generator=generator(kind, device)
            )
    there = x.to(device), None if context is None else context.to(device)
    if isinstance(model, Features):
        ops["features"] = lambda: model.features(*there)
    if isinstance(model, Coder):
        given = {"context": there[1]} if there[1] is not None else {}
        ops["reconstruct"] = lambda: model.reconstruct(there[0], **given)
    if isinstance(model, Denoiser) and model.corruption is not None:

        def repair() -> Any:
            torch.manual_seed(11)
            return model.repair(there[0])

        ops["repair"] = repair

    def evaluate() -> Any:
        data.move_to(device)
        return evaluate_split(model, data, "test", weights="raw", seed=0).details

    ops["eval"] = evaluate

    def drawn(picture: Any) -> bytes:
        data.move_to(device)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            picture(viz.Subject(model, data, "test", Path(folder) / "metrics.csv"))(file)
            return file.read_bytes()

    if hasattr(getattr(model, "net", None), "attention_weights"):
        for picture in (generation.attention, generation.order):
            ops[f"show, {picture.__name__}"] = lambda picture=picture: drawn(picture)
    return ops


def fit_context(model: Any, batch: Any) -> Tensor | None:
    """What the model is conditioned on; a classifier's labels are not given to what it is asked here."""
    kind = getattr(model, "conditioning", "none")
    return {"label": batch.labels, "image": batch.context, "none": None}[kind]


def rows(subject: Subject, device: torch.device) -> Iterator[tuple[str, Callable[[], Any], list[int]]]:
    """(operation, what does it, syncs of each training step) one by one."""
    steps: list[int] = []
    if subject.trained:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            yield "train", lambda: train(subject, folder / "0", device, steps=steps, pictures=STEPS), steps
            if subject.name in RESUMED:
                yield "resume", lambda: resumed(subject, folder / "1", device), []
            if subject.name in GUARDED:
                yield "guard", lambda: guarded(subject, folder / "2", device), []
    else:
        yield "loss and gradient", lambda: gradient(subject, device), []
    data = subject.images()
    model = subject.model(data.spec).to(device).eval()
    with torch.no_grad():
        for name, does in operations(model, data, device, subject.generators).items():
            yield name, does, []


def gradient(subject: Subject, device: torch.device) -> dict[str, Any]:
    """One training batch, forward and backward."""
    data = subject.images()
    with pretend.counted() if DEVICE is not None else nullcontext():
        model: Any = subject.model(data.spec).to(device).train()
        data.move_to(device)
    batch = data.training_batch(1)
    torch.manual_seed(4)
    with pretend.counted() if DEVICE is not None else nullcontext():  # what only the first batch does
        model.objective(batch.images, fit_context(model, batch))
    loss = model.objective(batch.images, fit_context(model, batch))["loss"].mean()
    loss.backward()
    return {"loss": loss.detach(), "gradient": [p.grad for p in model.parameters() if p.grad is not None]}


def digest(value: Any) -> str:
    """Of every tensor and number in a value, to the bit."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            part = getattr(part, "elem", part).detach()
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        elif isinstance(part, dict):
            for key, each in part.items():
                found.update(str(key).encode())
                add(each)
        elif isinstance(part, (list, tuple)):
            for each in part:
                add(each)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()[:16]


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """By its formula: the CPU's own is fused and sums in another order than a device that has none."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ v


def run(subject: Subject, device: torch.device) -> dict[str, dict[str, Any]]:
    """Every operation of one subject on one device: what it made or its error, and its syncs."""
    found: dict[str, dict[str, Any]] = {}
    for name, does, steps in rows(subject, device):
        with pretend.counted() if DEVICE is not None and device != CPU else nullcontext({}) as counts:
            try:
                row: dict[str, Any] = {"digest": digest(does()), "error": None}
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = next((f for f in reversed(where) if "/genlab/" in f.filename), where[-1])
                row = {
                    "digest": None,
                    "error": f"{type(error).__name__}: {str(error)[:300]} [{ours.filename}:{ours.lineno}]",
                }
            row["syncs"], row["where"] = sum(counts.values()), dict(counts)
        if steps:
            row["steps"] = [b - a for a, b in zip([0, *steps], steps, strict=False)]
        found[name] = row
    return found


DEVICE: torch.device | None = None
pretend: Any = None


def main(which: str, out: str, *options: str) -> None:
    """First everything on the CPU, then, unless `--cpu`, everything on the pretend device."""
    global DEVICE, pretend
    torch.set_num_threads(1)
    torch.nn.functional.scaled_dot_product_attention = attention
    genlab.models.flow.LANGEVIN_STEPS = genlab.models.gan.SEARCH_STEPS = FEW
    if "--cpu" not in options:
        import pretend as device  # before the first gradient: autograd asks once which devices there are

        pretend = device
    everything = list(subjects())
    groups = {"all": everything, "quick": [s for s in everything if s.name in QUICK]}
    groups |= {"rest": [s for s in once(everything) if s.name not in QUICK]}
    chosen = groups.get(which) or [s for s in everything if s.name in which.split(",")]
    table = {subject.name: {"cpu": run(subject, CPU)} for subject in chosen}
    if "--cpu" not in options:
        DEVICE = device.DEVICE
        from pretend_check import check

        with device.Pretending():
            check()
            for subject in chosen:
                table[subject.name]["pretend"] = run(subject, DEVICE)
    Path(out).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
