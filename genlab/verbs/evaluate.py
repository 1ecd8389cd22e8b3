"""`genlab eval`: evaluate a model on every image of a split, on one process or several. Prints a line and writes JSON.

A model with a likelihood is evaluated by its bits/dim, an autoencoder by its reconstructions, a classifier by its
accuracy. A GAN has none of these: its result is the losses of its two players, or with `classifier=` the quality of its
samples as in `genlab quality`. `per_image=true` also writes the scores of every image, and `classify=true` uses a
class-conditional model as a Bayes classifier.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.build import restore
from genlab.build.models import model_name
from genlab.core import Adversarial, Classifier, Coder, Likelihood, RequestError, Sampler
from genlab.data.fingerprint import sentence
from genlab.data.module import SPLITS
from genlab.measure.bayes import class_log_likelihoods, classify
from genlab.measure.evaluation import evaluate_split
from genlab.measure.feature_distances import MIN_IMAGES
from genlab.measure.feature_extractor import open_feature_extractor
from genlab.measure.oddness import scores
from genlab.measure.origin import origin
from genlab.measure.quality import Sampling, check_comparable, sample_quality
from genlab.processes import group, launch
from genlab.request.checkpoints import check_split, open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import Images
from genlab.request.numbers import check_at_least, check_seed
from genlab.request.outputs import output, save_columns
from genlab.request.progress import with_progress
from genlab.request.tables import print_table
from genlab.system import signals
from genlab.system.atomic import write_json
from genlab.system.device import choose_device
from genlab.train.plan import Plan
from genlab.viz.plots import save_figure
from genlab.viz.reliability import reliability

NOTE_CODER = "an autoencoder gives images no probability, so there is no bits/dim, but a reconstruction error"
NOTE_GAN = "a GAN has no likelihood, so there is no bits/dim; its samples can be compared with test images"
NOTE_PLAYERS = f"{NOTE_GAN} (add classifier=RUN); the losses of its players say little about samples"


def command(request: Request) -> None:
    """Check the request, then evaluate here or on `trainer.devices` processes."""
    config, _ = split_hydra(request.config())
    check_split(config)
    check_at_least(config, "draws", 1)
    check_seed(config)
    if config.batch_size is not None:
        check_at_least(config, "batch_size", 1)
    for key in ("per_image", "classify"):
        if not isinstance(config[key], bool):
            raise RequestError(f"{key}={config[key]}: expected true or false")
    beside = [ending for key, ending in (("per_image", ".csv"), ("classify", ".png")) if config[key]]
    config.out = str(output(config, "eval.json", *beside))
    plan = Plan.of(config.trainer)
    launch.check_cores(plan.devices, plan.accelerator)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    if not isinstance(model, (Likelihood, Coder, Adversarial, Classifier)):
        raise RequestError(f"{model_name(model)} has no likelihood: genlab eval has nothing to report for it")
    if not isinstance(model, Likelihood) and config.draws != 1:
        raise RequestError(
            f"draws={config.draws}: draws are those of a bound on the likelihood, which this model does not have; "
            "leave draws= out"
        )
    if config.classifier is not None:
        if not isinstance(model, Adversarial):
            raise RequestError(
                f"classifier={config.classifier}: this model is evaluated without one; the quality of its samples is "
                f"genlab quality ckpt={config.ckpt} classifier={config.classifier}"
            )
        evaluate_samples(config)
        return
    if config.per_image or config.classify:
        if plan.devices > 1:
            raise RequestError("per_image=true and classify=true run on one process: leave trainer.devices= out")
        check_extras(config, model)
    open_data(config, run, warn=False).split(config.split)  # so that a missing file is reported once, not by each rank
    if group.world_size() == 1 and plan.devices > 1:
        launch.ranks(plan.devices, "genlab.verbs.evaluate:work", settings=OmegaConf.to_container(config))
    else:
        work(OmegaConf.to_container(config))
    if config.per_image:
        write_scores_of_split(config)
    if config.classify:
        write_classification(config)


@signals.impatiently()  # at once, also on one rank of several: there is nothing to save
def work(settings: Any) -> None:
    """Evaluate this process's share of the images. Rank zero writes and prints the result of all ranks."""
    config = OmegaConf.create(settings)
    assert isinstance(config, DictConfig)
    plan = Plan.of(config.trainer)
    group.join(plan.accelerator)
    model, run = restore(config.ckpt, weights=config.weights, trust=config.trust)
    data = open_data(config, run, warn=False)
    other_data = data.others.get(config.split)
    if plan.accelerator == "gpu":
        device = torch.device("cuda", torch.cuda.current_device())
        data.move_to(device)
        model.to(device)

    def evaluate(advance):  # type: ignore[no-untyped-def]
        return evaluate_split(
            model, data, config.split, weights=str(model.weights), seed=config.seed, draws=config.draws,
            on_batch=advance,
        )  # fmt: skip

    if not group.is_rank_zero():
        evaluate(None)
        return
    evaluation = with_progress("evaluating", len(data.split(config.split).labels), evaluate)
    fingerprint = getattr(data, "fingerprints", {}).get(config.split)
    described = {**origin(config.ckpt), "fingerprint": fingerprint, "other_data": other_data}
    write_json(Path(config.out), {**evaluation.details, **described})
    if isinstance(model, Adversarial):
        print(f"{NOTE_PLAYERS}:")
    elif isinstance(model, Coder) and not isinstance(model, Likelihood):
        print(f"{NOTE_CODER}:")
    warning = f"; CAREFUL: {sentence(config.split, other_data)}" if other_data else ""
    print(f"{config.split} {evaluation.text}{warning}")


def evaluate_samples(config: DictConfig) -> None:
    """Measure the quality of a GAN's samples, write the JSON file and print the table."""
    if config.split != "test":
        raise RequestError(f"split={config.split}: samples are compared with test images; leave split= out")
    check_at_least(config, "n", MIN_IMAGES)
    sampling = Sampling(config.n, config.seed)
    model, run, _ = open_model(config, Sampler, "draw images")
    extractor = open_feature_extractor(config.classifier, choose_device("auto"), sampling.batch_size, config.trust)
    data = open_data(config, run, splits=SPLITS)
    check_comparable(model, extractor, data, config.n, run, config.ckpt)
    quality = sample_quality(model, model, extractor, data, sampling, with_progress=with_progress)
    write_json(Path(config.out), {**origin(config.ckpt), "weights": str(model.weights), **quality.as_dict()})
    print(f"{NOTE_GAN}:")
    print_table(*quality.table(run["names"]["model"]))


def check_extras(config: DictConfig, model: Any) -> None:
    """Raise RequestError if the model cannot do what the request asks for."""
    if config.per_image:
        if not isinstance(model, (Likelihood, Coder)):
            raise RequestError("per_image=true: this model has no score of a single image; leave per_image= out")
        if getattr(model, "conditioning", "none") == "image":
            raise RequestError("per_image=true: this model is conditioned on a second image; leave per_image= out")
    by_class = isinstance(model, Likelihood) and getattr(model, "conditioning", "none") == "label"
    if config.classify and not by_class:
        raise RequestError("classify=true needs a likelihood given the class: train with data/context=label")


def write_scores_of_split(config: DictConfig) -> None:
    """Write the scores of every image of the split, as `genlab score` does."""
    model, run, spec = open_model(config, object, "be evaluated")
    data = open_data(config, run, warn=False)
    split = data.split(config.split)
    labels = split.labels if model.conditioning == "label" else None
    images = Images(config.split, spec, split.images, labels)

    def compute(advance):  # type: ignore[no-untyped-def]
        return scores(model, images, labels, advance=advance)

    columns = with_progress("scoring", len(images), compute)
    out = Path(str(config.out)).with_suffix(".csv")
    save_columns(out, images, columns)
    print(f"{out}: {', '.join(columns)} of every image")


def write_classification(config: DictConfig) -> None:
    """Classify every image of the split by Bayes' rule; add the result to the JSON file and draw its calibration."""
    model, run, _ = open_model(config, Likelihood, "give images a probability")
    data = open_data(config, run, warn=False)
    split, train = data.split(config.split), data.split("train")

    def compute(advance):  # type: ignore[no-untyped-def]
        return class_log_likelihoods(model, split.images, advance)

    log_likelihoods = with_progress("classifying", len(split.labels), compute)
    result = classify(log_likelihoods, split.labels, torch.bincount(train.labels, minlength=model.spec.classes))
    out = Path(str(config.out))
    write_json(out, {**json.loads(out.read_text()), "classification": asdict(result)})
    save_figure(out.with_suffix(".png"), reliability(result.bins, f"p(y | x) by Bayes' rule, {result.n:,} images"))
    print(f"as a classifier: {result}; {out.with_suffix('.png')}")
