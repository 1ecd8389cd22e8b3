"""The check of a context, the same for every family."""

from __future__ import annotations

from torch import Tensor

from genlab.core import RequestError

KINDS = {"label": "a class label", "image": "a second image"}


def check_context(context: Tensor | None, conditioning: str, batch: int) -> Tensor | None:
    """Return the context if a model of this conditioning (none | label | image) can use it for a batch of this size.

    Raises RequestError if the context is missing, if the model takes none, or if there is not one for each image.
    """
    if conditioning == "none":
        if context is not None:
            raise RequestError("this model is unconditional: it takes no label and no context image")
    elif context is None:
        raise RequestError(f"this model is conditioned on {KINDS[conditioning]}: give one for every image")
    elif len(context) != batch:
        raise RequestError(f"{len(context)} contexts were given for {batch} images")
    return context
