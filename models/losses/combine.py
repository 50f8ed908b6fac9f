"""A weighted, scheduled, balanced sum of losses, with an optional neighbour penalty.

The gradient of each term is taken once, at the logits, and their sum goes back through the network once. So a term can
be weighed by its gradient before it counts (`balance`), and what each pulls at, and whether it pulls with the others,
is known at no cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from models.errors import InvalidInput
from models.losses import LOSSES, PIXEL_LOSSES, REFERENCE_FREE, RULE_LOSSES, context_of, hyper_parameters, usual
from models.losses.containment import rules_of
from models.losses.neighbours import worst_neighbour
from models.losses.pixels import check, labelled
from topology.containment import Rule

MODES = ("add", "replace")
AUTO = "auto"
"""As the neighbour penalty's window: about as wide as the labelled structures; see `window_for`."""
LEAST, MOST = 3, 31
"""Smallest and largest window of the neighbour penalty."""
BALANCES = ("gradient", None)


@dataclass(frozen=True)
class Schedule:
    """When a term counts, in optimizer steps numbered from 0: from_step <= step < to_step, every n-th; rising over
    `ramp` steps.
    """

    weight: float = 1.0
    from_step: int = 0
    to_step: int | None = None
    every: int = 1
    ramp: int = 0

    def weight_at(self, step: int) -> float:
        """Factor of the term at this step; 0 means that it need not be computed."""
        since = step - self.from_step
        ended = self.to_step is not None and step >= self.to_step
        if since < 0 or ended or since % self.every:
            return 0.0
        return self.weight * min(1.0, (since + 1) / (self.ramp + 1))


@dataclass(frozen=True)
class Term:
    """One named loss with its options and its schedule.

    balance  "gradient": the gradient of the term at the logits has at most the norm of that of the pixel losses of the
             same objective, all weighted; where none of those counts there is nothing to hold it to. None: as it is
    """

    name: str
    options: dict
    schedule: Schedule
    balance: str | None = None

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """From `{"name": ..., "weight": ..., <hyper-parameters>}`; an unknown name or field is refused."""
        fields = dict(fields)
        name = fields.pop("name", None)
        if name not in LOSSES:
            raise InvalidInput(f"Loss {name!r} is not known; the losses are {', '.join(sorted(LOSSES))}.")
        fields = {"weight": usual(name).weight, "balance": usual(name).balance, **fields}
        balance = fields.pop("balance")
        if balance not in BALANCES:
            raise InvalidInput(f"balance of {name!r} is {balance!r}; it is 'gradient' or null.")
        schedule = Schedule(**{key: fields.pop(key) for key in Schedule.__dataclass_fields__ if key in fields})
        allowed = hyper_parameters(name)
        if unknown := sorted(set(fields) - set(allowed)):
            raise InvalidInput(
                f"Loss {name!r} has no option {', '.join(unknown)}; it takes {', '.join(sorted(allowed)) or 'none'}."
            )
        needed = {key for key, default in allowed.items() if default is inspect.Parameter.empty}
        if missing := sorted(needed - set(fields)):
            raise InvalidInput(f"Loss {name!r} needs {', '.join(missing)}, which the term does not give.")
        return cls(name, fields, schedule, balance)

    def __call__(self, logits, target, context):
        """(N,) without the weight, of input that was checked."""
        loss = LOSSES[self.name]
        return inspect.unwrap(loss)(logits, target, **self.options, **context_of(loss, context))


@dataclass(frozen=True)
class Part:
    """What one term did at a step.

    values  {view: mean over the batch, before the weight}, of plain logits "" and of penalised ones
    norm    of the gradient of its share of the batch mean at the logits, weighted, before it was balanced
    factor  in [0, 1] by which balancing has lessened it
    cosine  between that gradient and the sum of all other terms', in [-1, 1]; 0 where either is 0
    """

    values: dict
    norm: torch.Tensor
    factor: torch.Tensor
    cosine: torch.Tensor


class _Known(torch.autograd.Function):
    """Values (N,) of logits (N, ...) whose gradients are known already."""

    @staticmethod
    def forward(ctx, logits, values, gradient):
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx, by_values):
        (gradient,) = ctx.saved_tensors
        return by_values.view(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None


class Objective:
    """What a training step minimises, read from the `loss` part of a specification."""

    def __init__(self, loss):
        self.terms = [Term.read(fields) for fields in loss["terms"]]
        if not self.terms:
            raise InvalidInput("loss.terms is empty; name at least one loss, such as cross_entropy.")
        if len({term.name for term in self.terms}) < len(self.terms):
            raise InvalidInput("loss.terms names a loss more than once; name it once and set its weight.")
        penalty = loss.get("neighbour_penalty")
        self.window = None if penalty is None else penalty.get("window", 3)
        self.mode = None if penalty is None else penalty.get("mode", "add")
        self.penalised_from = 0 if penalty is None else penalty.get("from_step", 0)
        if self.window == AUTO:
            raise InvalidInput(
                "neighbour_penalty has window auto, which a training finds from its labels; give a number."
            )
        if penalty is not None and (self.window < LEAST or self.window % 2 == 0 or self.mode not in MODES):
            raise InvalidInput(
                f"neighbour_penalty has window {self.window} and mode {self.mode!r}; window is odd and at least 3, mode"
                f" one of {', '.join(MODES)}."
            )

    @property
    def learns_without_labels(self) -> bool:
        """True when a term needs no reference."""
        return any(term.name in REFERENCE_FREE for term in self.terms)

    @property
    def rules(self) -> list[Rule]:
        """The rules between classes of all terms."""
        return [rule for term in self.terms if term.name in RULE_LOSSES for rule in rules_of(term.name, **term.options)]

    def _views(self, logits, target, ignore, step):
        """The logits each term looks at: plain, penalised, or both, with the suffix of their name."""
        if self.mode is None or step < self.penalised_from:
            return {"": logits}
        views = {} if self.mode == "replace" else {"": logits}
        views["/neighbour_penalty"] = worst_neighbour(logits, target, window=self.window, ignore=ignore)
        return views

    def __call__(self, logits, target, *, step, **context):
        """Total of every sample (N,), and {term: Part}; a term that does not count now is absent.

        context  `ignore` and whatever else of CONTEXT the data knows
        Samples of which nothing is labelled are shown to the terms that need no reference only. The others count as if
        such samples were not in the batch: the mean of their part over the batch is the mean over the labelled samples.
        The total may be sent back once, not differentiated twice.
        """
        ignore = context.get("ignore")
        check(logits, target, ignore, classes=any(term.name not in REFERENCE_FREE for term in self.terms))
        every = torch.arange(len(logits), device=logits.device)
        known = every[labelled(target, ignore).flatten(1).any(1)]
        shares = []
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            views = self._views(leaf, target, ignore, step)
            for term in self.terms:
                seen = every if term.name in REFERENCE_FREE else known
                if (weight := term.schedule.weight_at(step)) and len(seen):
                    shares.append(_Share.of(term, weight * len(every) / len(seen), views, leaf, target, seen, context))
        _balance(shares)
        total = sum((share.values for share in shares), leaf.detach().new_zeros(len(leaf)))
        gradient = sum((share.gradient for share in shares), torch.zeros_like(leaf))
        return _Known.apply(logits, total, gradient), {share.term.name: share.part(gradient) for share in shares}


@dataclass
class _Share:
    """What a term adds to the total of every sample (N,), and the gradient of that at the logits (N, C, ...)."""

    term: Term
    values: torch.Tensor
    gradient: torch.Tensor
    means: dict
    norm: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, term, weight, views, leaf, target, seen, context):
        values, gradient, means = leaf.detach().new_zeros(len(leaf)), torch.zeros_like(leaf), {}
        for name, view in views.items():
            value = term(*_of((view, target), seen), _context_of(context, seen))
            if value.requires_grad:  # the penalised view is the same for all terms
                gradient += weight * torch.autograd.grad(value.sum(), leaf, retain_graph=view is not leaf)[0]
            values = values.index_add(0, seen, weight * value.detach().to(values.dtype))
            means[name] = value.detach().mean()
        return cls(term, values, gradient, means, gradient.norm() / len(leaf), torch.ones_like(gradient.sum()))

    def lessen(self, factor):
        self.factor = factor
        self.values, self.gradient = factor * self.values, factor * self.gradient

    def part(self, together):
        rest = together - self.gradient
        cosine = (rest * self.gradient).sum() / (rest.norm() * self.gradient.norm()).clamp(min=_tiny(rest))
        return Part(self.means, self.norm, self.factor, cosine)


def _tiny(tensor):
    return torch.finfo(tensor.dtype).tiny


def _balance(shares):
    """Hold the gradient of each term that asks for it to the norm of that of the pixel losses together."""
    pixels = [share.gradient for share in shares if share.term.name in PIXEL_LOSSES]
    if not pixels:
        return
    most = sum(pixels).norm() / len(pixels[0])
    for share in shares:
        if share.term.balance == "gradient" and share.term.name not in PIXEL_LOSSES:
            share.lessen((most / share.norm.clamp(min=_tiny(most))).clamp(max=1))


def window_for(width: float) -> int:
    """The odd window nearest to a width in pixels, LEAST to MOST; LEAST for None.

    The published sweep was best at 0.9 to 1.5 times the median width of the structures, 3 was worse than 5 at each of
    three sizes, and windows wider than that were worse than 3.
    """
    return LEAST if width is None else max(LEAST, min(MOST, 2 * int(width // 2) + 1))


def _of(tensors, samples):
    """The chosen samples of tensors (N, ...), which are all or fewer."""
    return tensors if len(samples) == len(tensors[0]) else [tensor[samples] for tensor in tensors]


def _context_of(context, samples):
    """The context of the chosen samples: pixel sizes are one row a sample."""
    spacing = context.get("spacing")
    return (
        context
        if spacing is None or len(spacing) == len(samples)
        else {**context, "spacing": spacing[samples.cpu().numpy()]}
    )
