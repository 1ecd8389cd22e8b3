"""`genlab features`: the features of every image of a split, as an .npz file.

N images, D features of a layer. Features that a layer has at several positions are averaged over the positions.
"""

from __future__ import annotations

import numpy as np

from genlab.core import Features
from genlab.measure.layers import check_layer, default_layer, layer_features, layer_names
from genlab.request.checkpoints import check_split, open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.outputs import output
from genlab.request.progress import with_progress
from genlab.system.atomic import atomically


def command(request: Request) -> None:
    """Check the request, compute the features, write the file and print one line."""
    config, _ = split_hydra(request.config())
    check_split(config)
    out = output(config, "features.npz")
    model, run, _ = open_model(config, Features, "show its features")
    data = open_data(config, run)
    names = layer_names(model, data)
    check_layer(config.layer, names, ("all",))
    layer = config.layer or default_layer(names)
    labels = data.split(config.split).labels

    def compute(advance):  # type: ignore[no-untyped-def]
        only = None if layer == "all" else layer
        return layer_features(model, data.batches(config.split), only, advance)

    features = with_progress("features", len(labels), compute)  # {layer: (N, D)}
    arrays = features if layer == "all" else {"features": features[layer]}
    with atomically(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, labels=labels.cpu().numpy(), index=np.arange(len(labels)))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in features.items())
    print(f"{out}: {shapes} of {data.name} {config.split} (means over positions where a layer has them)")
