"""A weighted, scheduled sum of losses, with the neighbour penalty around it when asked for."""

from dataclasses import dataclass

import torch

from models.errors import InvalidInput
from models.losses import LOSSES, REFERENCE_FREE, context_of, hyper_parameters
from models.losses.neighbours import worst_neighbour
from models.losses.pixels import labelled

MODES = ("add", "replace")


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

    def weight_at(self, step):
        """Factor of the term at this step; 0 means that it need not be computed."""
        since = step - self.from_step
        ended = self.to_step is not None and step >= self.to_step
        if since < 0 or ended or since % self.every:
            return 0.0
        return self.weight * min(1.0, (since + 1) / (self.ramp + 1))


@dataclass(frozen=True)
class Term:
    """One named loss with its options and its schedule."""

    name: str
    options: dict
    schedule: Schedule

    @classmethod
    def read(cls, fields):
        """From `{"name": ..., "weight": ..., <hyper-parameters>}`; an unknown name or field is refused."""
        fields = dict(fields)
        name = fields.pop("name", None)
        if name not in LOSSES:
            raise InvalidInput(f"Loss {name!r} is not known; the losses are {', '.join(sorted(LOSSES))}.")
        schedule = Schedule(**{key: fields.pop(key) for key in Schedule.__dataclass_fields__ if key in fields})
        allowed = hyper_parameters(name)
        if unknown := sorted(set(fields) - set(allowed)):
            raise InvalidInput(
                f"Loss {name!r} has no option {', '.join(unknown)}; it takes {', '.join(sorted(allowed)) or 'none'}."
            )
        return cls(name, fields, schedule)

    def __call__(self, logits, target, context):
        """(N,) without the weight."""
        loss = LOSSES[self.name]
        return loss(logits, target, **self.options, **context_of(loss, context))


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
        if penalty is not None and (self.window < 3 or self.window % 2 == 0 or self.mode not in MODES):
            raise InvalidInput(
                f"neighbour_penalty has window {self.window} and mode {self.mode!r}; window is odd and at least 3, mode"
                f" one of {', '.join(MODES)}."
            )

    @property
    def learns_without_labels(self):
        """True when a term needs no reference."""
        return any(term.name in REFERENCE_FREE for term in self.terms)

    def _views(self, logits, target, ignore):
        """The logits each term looks at: plain, penalised, or both, with the suffix of their name."""
        views = [] if self.mode == "replace" else [("", logits)]
        if self.mode is not None:
            views.append(("/neighbour_penalty", worst_neighbour(logits, target, window=self.window, ignore=ignore)))
        return views

    def __call__(self, logits, target, *, step, **context):
        """Total of every sample (N,) and {term: mean over the batch, before its weight}; a term that does not count now
        is absent.

        context  `ignore` and whatever else of CONTEXT the data knows
        Samples of which nothing is labelled are shown to the terms that need no reference only. The others count as if
        such samples were not in the batch: the mean of their part over the batch is the mean over the labelled samples.
        """
        active = [(term, weight) for term in self.terms if (weight := term.schedule.weight_at(step))]
        total, parts = 0 * logits.flatten(1)[:, 0], {}  # keeps a gradient, of zero, at steps where no term counts
        every = torch.arange(len(logits), device=logits.device)
        known = every[labelled(target, context.get("ignore")).flatten(1).any(1)]
        for suffix, view in self._views(logits, target, context.get("ignore")):
            for term, weight in active:
                seen = every if term.name in REFERENCE_FREE else known
                if len(seen) == 0:
                    continue
                value = term(*_of((view, target), seen), _context_of(context, seen))
                total = total.index_add(0, seen, weight * len(every) / len(seen) * value.to(total.dtype))
                parts[term.name + suffix] = value.detach().mean()
        return total, parts


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
