"""Every loss a specification may name.

A loss is a pure function `(logits, target, *, <hyper-parameters>, ignore=None) -> (N,)`; `models.losses.pixels` states the shapes.
`terms[].name` is a key of LOSSES, and the other fields of the term are its keyword arguments.
"""

import inspect

from models.losses.hard_pixels import skeleton_hard_pixels
from models.losses.overlap import cross_entropy, dice
from models.losses.skeletons import soft_cldice

LOSSES = {loss.__name__: loss for loss in (cross_entropy, dice, soft_cldice, skeleton_hard_pixels)}

CONTEXT = frozenset({"ignore", "spacing"})
"""Keyword arguments that come from the data, not from the specification."""


def hyper_parameters(loss):
    """{name: default} of what a specification may set for this loss (a function, or a key of LOSSES)."""
    loss = LOSSES[loss] if isinstance(loss, str) else loss
    parameters = inspect.signature(loss).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT}
