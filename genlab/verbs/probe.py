"""`genlab probe`: the accuracy of a linear classifier on a model's features and on controls, as a table and JSON.

`genlab/measure/probe_comparison.py` describes the controls and the seeds.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from genlab.build import build
from genlab.core import Features, RequestError
from genlab.measure.layers import check_layer, layer_names
from genlab.measure.origin import origin
from genlab.measure.probe import PENALTIES, TOLERANCE
from genlab.measure.probe_comparison import COLUMNS, ProbeData, line, probe_all_controls, probe_network, table
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least
from genlab.request.outputs import output
from genlab.request.progress import with_progress
from genlab.request.tables import print_table
from genlab.system.atomic import write_json

ALL_LAYERS = ("best", "all")  # values of `layer=` for which every layer is probed


def command(request: Request) -> None:
    """Check the request, fit the probes, write the JSON file and print the table."""
    config, _ = split_hydra(request.config())
    out = output(config, "probe.json")
    for key in ("seeds", "per_class", "train", "batch_size"):
        if config[key] is not None:
            check_at_least(config, key, 1)
    if config.per_class is not None and config.train is not None:
        raise RequestError(f"per_class={config.per_class} and train={config.train} both say how many labels: give one")
    model, run, spec = open_model(config, Features, "show its features")
    conditioning = getattr(model, "conditioning", "none")
    if conditioning == "label":
        raise RequestError("this model is conditioned on the label, so a probe would only read the label back")
    data = open_data(config, run)
    probe_data = ProbeData(
        data, seeds=config.seeds, per_class=config.per_class, count=config.train, with_progress=with_progress
    )
    check_layer(config.layer, layer_names(model, data), ALL_LAYERS)
    layer = None if config.layer in ALL_LAYERS else config.layer

    def untrained(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(run["model"], spec, config.trust).to(next(model.parameters()).device).eval()

    records = [probe_network(probe_data, model, layer)]
    if config.controls:
        records += probe_all_controls(probe_data, spec.levels, records[0].probes[0].width, untrained, layer)
    labelled, test = len(probe_data.subsets[0]), len(probe_data.labels["test"])
    write_json(
        out,
        {
            **origin(config.ckpt), "weights": model.weights, "given": conditioning, "data": data.name,
            "other_data": data.others, "per_class": config.per_class, "train": config.train,
            "labelled_images": labelled, "valid_images": len(probe_data.labels["valid"]), "test_images": test,
            "penalties": PENALTIES, "tolerance": TOLERANCE, "records": [record.as_dict() for record in records],
        },
    )  # fmt: skip
    rows = table(records, every_layer=config.layer == "all")
    title = f"accuracy in %, {labelled:,} labels, {test:,} test images; ± is a 95 % interval of test images and seeds"
    print_table(title, COLUMNS, rows, [line(*row) for row in rows])
    if conditioning == "image":
        print("the network also gets a second image; the other features are computed without it")
    if unfinished := [record.features for record in records if not all(p.converged for p in record.probes)]:
        print(f"genlab: L-BFGS stopped before it converged for {', '.join(unfinished)}", file=sys.stderr)
