"""Whether a model was given what it is conditioned on: one check for every family."""

from __future__ import annotations

from torch import Tensor

from genlab.core import RequestError

KINDS = {"label": "a class label", "image": "a second image"}


def suited(context: Tensor | None, conditioning: str, batch: int) -> Tensor | None:
    """The context, if it is what a model of that conditioning (none | label | image) needs for so many images.

    RequestError: one is missing, nobody asked for it, or their number is another.
    """
    if conditioning == "none":
        if context is not None:
            raise RequestError("this model is unconditional: it takes no label and no context image")
    elif context is None:
        raise RequestError(f"this model is conditioned on {KINDS[conditioning]}: give one for every image")
    elif len(context) != batch:
        raise RequestError(f"{len(context)} contexts were given for {batch} images")
    return context
