"""`genlab eval per_image=true` and `classify=true`: a file of scores, and a class-conditional model as a classifier."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from genlab.core import Coder, Likelihood, RequestError
from genlab.measure.bayes import class_log_likelihoods, classify
from genlab.measure.oddness import scores
from genlab.request.checkpoints import open_data, open_model
from genlab.request.image_set import Images
from genlab.request.outputs import save_columns, writable
from genlab.request.progress import with_progress
from genlab.system.atomic import write_json
from genlab.viz.plots import save_figure
from genlab.viz.reliability import reliability


def check(config: DictConfig, model: Any) -> None:
    """Raise RequestError if the model cannot do what the request asks for, or a file cannot be written."""
    out = Path(str(config.out))
    if config.per_image:
        writable("out", str(out.with_suffix(".csv")), ".csv")
        if not isinstance(model, (Likelihood, Coder)):
            raise RequestError("per_image=true: this model has no score of a single image; leave per_image= out")
        if getattr(model, "conditioning", "none") == "image":
            raise RequestError("per_image=true: this model is conditioned on a second image; leave per_image= out")
    if config.classify:
        writable("out", str(out.with_suffix(".png")), ".png")
        if not isinstance(model, Likelihood) or getattr(model, "conditioning", "none") != "label":
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
