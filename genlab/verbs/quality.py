"""`genlab quality`: the similarity of a model's samples to test images, as a table and JSON.

`genlab/measure/quality.py` describes the measures.
"""

from __future__ import annotations

from functools import partial

from genlab.core import RequestError, Sampler
from genlab.measure.feature_distances import MIN_IMAGES
from genlab.measure.feature_extractor import open_feature_extractor
from genlab.measure.origin import origin
from genlab.measure.quality import Sampling, check_comparable, sample_quality
from genlab.models import Autoencoder
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least, check_seed, check_temperature
from genlab.request.outputs import output
from genlab.request.progress import with_progress
from genlab.request.samplers import sampler_of
from genlab.request.tables import print_table
from genlab.system.atomic import write_json
from genlab.system.device import choose_device
from genlab.train.accuracy_score import accuracy_score


def command(request: Request) -> None:
    """Check the request, measure the samples, write the JSON file and print the table."""
    config, _ = split_hydra(request.config())
    out = output(config, "quality.json")
    check_at_least(config, "n", MIN_IMAGES)
    check_at_least(config, "batch_size", 1)
    check_temperature(config)
    check_seed(config)
    model, run, _ = open_model(config, Sampler, "draw images", Autoencoder)
    device = choose_device(config.device)
    extractor = open_feature_extractor(config.classifier, device, config.batch_size, config.trust)
    data = open_data(config, run)
    check_comparable(model, extractor, data, config.n, run, config.ckpt)
    if config.cas and getattr(model, "conditioning", "none") != "label":
        raise RequestError(
            "cas=true trains a classifier on samples with labels, and this model is not conditioned on any"
        )
    sampler, stand_in = sampler_of(config, model, run)
    score = partial(
        accuracy_score, extractor.run, spec=extractor.spec, seed=config.seed, device=device, trust=config.trust
    )
    quality = sample_quality(
        model, sampler, extractor, data, Sampling(config.n, config.seed, config.temperature, config.batch_size),
        stand_in=stand_in, accuracy_score=score if config.cas else None,
        with_progress=with_progress,
    )  # fmt: skip
    write_json(out, {**origin(config.ckpt), "weights": str(model.weights), **quality.as_dict()})
    print_table(*quality.table(run["names"]["model"]))
