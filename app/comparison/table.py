"""The table of a comparison: spreads, paired differences, ranks and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparison.statistics import holm, mean_ranks, paired, smallest_p
from app.comparison.verdicts import ALPHA, MOST_DICE_LOST, beats_random_repair, dice_lost, verdict_of
from app.metric_table import METRICS
from app.schemas.comparison_answers import (
    Candidate,
    CandidateFigure,
    Comparison,
    Contrast,
    Control,
    ControlName,
    EqualDice,
    Shifted,
    Spread,
    Trained,
)
from app.store.tables import FINISHED, Job, JobEvent, Measurement

BETTI = ("beta0_error", "beta1_error", "beta2_error")
SUM = "betti_error"
"""The sum of the Betti errors: what a verdict is about."""
FIGURES = (*METRICS, SUM)
EQUAL_DICE = 0.01
"""Dice that differs by less is called equal."""
MOST_CASES = 20
MOST_NOTES = 20

Figures = Mapping[str, float]
Cell = tuple[int, int]
"""(fold, seed)."""


class Trial:
    """One training of a candidate, with what was measured by it: figures of each item, means over its classes."""

    def __init__(self, job: Job):
        self.job = job
        self.candidate: str | None = job.spec["trial"]["candidate"]
        self.cell: Cell = (job.spec["fold"], job.spec["seed"])
        self.items: dict[str, dict[str, float]] = {}
        self.images: dict[str, UUID | None] = {}

    def beside(self, items: Mapping[str, dict[str, float]]) -> Trial:
        """The same training with the figures of other items."""
        other = Trial(self.job)
        other.items = dict(items)
        return other

    def mean(self, metric: str) -> float | None:
        """Over items."""
        return _mean(figures[metric] for figures in self.items.values() if metric in figures)


def compared(session: Session, job: Job) -> Comparison:
    """What a comparison says now, complete or not."""
    trials = _trials(session, job)
    names = list(dict.fromkeys(trial.candidate for trial in trials if trial.candidate is not None))
    rows, by_name = _candidates(trials, names)
    controls = _controls(job, trials, by_name[names[0]])
    helps = _helps(rows, controls)
    images = len({item for trial in by_name[names[0]].values() for item in trial.items}) if names else 0
    complete = all(trial.job.state in FINISHED for trial in trials)
    possible = smallest_p(images, len(names) - 1)
    return Comparison(
        job=job.id,
        state=job.state,
        verdict=verdict_of(rows, helps, images=images, complete=complete, possible=possible, controls=controls),
        helps=helps,
        baseline=names[0],
        images=images,
        complete=complete,
        notes=_notes(session, trials),
        candidates=rows,
        controls=controls,
        shifted=_shifted(job, trials, names, complete=complete),
        trainings=[_trained(trial) for trial in trials],
        equal_dice=_equal_dice(by_name, names),
    )


def _candidates(trials: Sequence[Trial], names: Sequence[str]) -> tuple[list[Candidate], dict[str, dict[Cell, Trial]]]:
    """A row for each candidate, and the trainings of each that have figures."""
    by_name = {name: {t.cell: t for t in trials if t.candidate == name and t.items} for name in names}
    contrasts = {metric: _contrasts(by_name, names, metric) for metric in FIGURES}
    ranks = {metric: _ranks(by_name, names, metric) for metric in FIGURES}
    rows = [
        Candidate(
            name=name,
            baseline=name == names[0],
            trainings=sum(trial.candidate == name for trial in trials),
            measured=len(by_name[name]),
            failures=list(dict.fromkeys(filter(None, (_reason(t.job) for t in trials if t.candidate == name)))),
            seconds_per_step=_mean(
                t.job.seconds_per_step for t in by_name[name].values() if t.job.seconds_per_step is not None
            ),
            peak_bytes=max(((t.job.result or {}).get("peak_bytes") or 0 for t in by_name[name].values()), default=0)
            or None,
            by_image=_by_image(by_name[name].values()),
            figures={
                metric: CandidateFigure(
                    spread=spread, rank=ranks[metric].get(name), contrast=contrasts[metric].get(name)
                )
                for metric in FIGURES
                if (spread := _spread(trial.mean(metric) for trial in by_name[name].values())).mean is not None
            },
        )
        for name in names
    ]
    return rows, by_name


def _by_image(trials: Iterable[Trial]) -> dict[str, float]:
    """The Betti error of each item, mean over trainings."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        for item, figures in trial.items.items():
            if SUM in figures:
                found.setdefault(item, []).append(figures[SUM])
    return {item: fmean(values) for item, values in sorted(found.items())}


def _shifted(job: Job, trials: Sequence[Trial], names: Sequence[str], *, complete: bool) -> Shifted | None:
    """The same table of the shifted set, whose images every training was measured on."""
    if job.spec.get("shifted") is None:
        return None
    elsewhere = [trial.beside((trial.job.result or {}).get("shifted") or {}) for trial in trials]
    rows, by_name = _candidates(elsewhere, names)
    helps = _helps(rows, ())
    images = len({item for trial in by_name[names[0]].values() for item in trial.items})
    verdict = verdict_of(
        rows, helps, images=images, complete=complete, possible=smallest_p(images, len(names) - 1), controls=()
    )
    return Shifted(dataset=job.spec["shifted"], verdict=verdict, helps=helps, images=images, candidates=rows)


def _controls(job: Job, trials: Sequence[Trial], baseline: Mapping[Cell, Trial]) -> list[Control]:
    """What stands beside the candidates: masks of the baseline edited at random, and those of a second observer."""
    edited = {
        trial.cell: trial.beside((trial.job.result or {}).get("controls", {}).get("random_repair", {}))
        for trial in baseline.values()
    }
    masks: dict[str, dict[str, float]] = (job.result or {}).get("second_observer") or {}
    drawn = {
        cell: trial.beside({item: masks[item] for item in trial.items if item in masks})
        for cell, trial in baseline.items()
    }
    controls: list[tuple[ControlName, dict[Cell, Trial]]] = [("random_repair", edited), ("second_observer", drawn)]
    return [
        Control(name=name, figures=figures) for name, measured in controls if (figures := _against(measured, baseline))
    ]


def _against(measured: Mapping[Cell, Trial], baseline: Mapping[Cell, Trial]) -> dict[str, CandidateFigure]:
    """Means of what was measured, and its differences from the baseline; by metric."""
    by_name = {"": baseline, "control": measured}
    return {
        metric: CandidateFigure(
            spread=spread, rank=None, contrast=_contrasts(by_name, list(by_name), metric).get("control")
        )
        for metric in FIGURES
        if (spread := _spread(trial.mean(metric) for trial in measured.values())).mean is not None
    }


def winner(table: Comparison, *, most_dice_lost: float = MOST_DICE_LOST) -> str | None:
    """The candidate with the lowest Betti error among those that lower it (interval below 0, p below 0.05 for the
    candidate by itself), match features better than random repair does, and have a Dice that is not lower by more than
    this part of the baseline's; None when there is none.
    """
    best, lowest = None, 0.0
    for row in table.candidates:
        if not beats_random_repair(row, table.controls):
            continue
        betti, lost = row.figures.get(SUM), dice_lost(row)
        if betti is None or betti.contrast is None or lost is None:
            continue
        below = betti.contrast.high is not None and betti.contrast.high < 0 and betti.contrast.p < ALPHA
        if below and lost <= most_dice_lost and betti.contrast.mean < lowest:
            best, lowest = row.name, betti.contrast.mean
    return best


def means_over_classes(classes: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """{metric: mean} of the figures of an item, one mapping for each class; with the sum of the Betti errors."""
    whole: list[dict[str, float]] = []
    for each in classes:
        known = {name: value for name, value in each.items() if name in METRICS and value is not None}
        figures = {name: float(value) for name, value in known.items() if math.isfinite(value)}
        if any(name in figures for name in BETTI):
            figures[SUM] = sum(figures.get(name, 0.0) for name in BETTI)
        whole.append(figures)
    return {
        metric: fmean(values) for metric in FIGURES if (values := [each[metric] for each in whole if metric in each])
    }


def _trials(session: Session, job: Job) -> list[Trial]:
    jobs = session.scalars(select(Job).where(Job.parent_id == job.id).order_by(Job.id)).all()
    trials = {child.id: Trial(child) for child in jobs}
    columns = [getattr(Measurement, name) for name in METRICS]
    measured = select(
        Measurement.job_id, Measurement.item_name, Measurement.image_id, Measurement.class_name, *columns
    ).where(Measurement.job_id.in_(trials))
    rows: dict[tuple[UUID, str], list[dict[str, float | None]]] = {}
    for job_id, item, image, _, *values in session.execute(measured.order_by(Measurement.id)):
        rows.setdefault((job_id, item), []).append(dict(zip(METRICS, values, strict=True)))
        trials[job_id].images[item] = image
    for (job_id, item), classes in rows.items():
        trials[job_id].items[item] = means_over_classes(classes)
    return list(trials.values())


def _notes(session: Session, trials: Sequence[Trial]) -> list[str]:
    """The warnings of the trainings, each once, with the folds that they are about where it is not all."""
    cells = {trial.job.id: trial.cell[0] for trial in trials}
    warned = select(JobEvent.job_id, JobEvent.data["message"].as_string()).where(
        JobEvent.job_id.in_(cells), JobEvent.event == "log", JobEvent.data["level"].as_string() == "warning"
    )
    folds: dict[str, set[int]] = {}
    for job_id, message in session.execute(warned.order_by(JobEvent.job_id, JobEvent.number)):
        folds.setdefault(message, set()).add(cells[job_id])
    everywhere = set(cells.values())
    return [
        message if found == everywhere else f"Fold {', '.join(map(str, sorted(found)))}: {message}"
        for message, found in folds.items()
    ][:MOST_NOTES]


def _reason(job: Job) -> str | None:
    if job.state == "failed":
        return str((job.error or {}).get("detail") or "It failed.")
    return f"It was {job.state}." if job.state in ("cancelled", "interrupted") else None


def _trained(trial: Trial) -> Trained:
    return Trained(
        job=trial.job.id,
        candidate=trial.candidate,
        network=trial.job.spec["trial"]["network"],
        augmentation=trial.job.spec["trial"].get("augmentation"),
        fold=trial.cell[0],
        seed=trial.cell[1],
        state=trial.job.state,
        reason=_reason(trial.job),
        figures={metric: value for metric in FIGURES if (value := trial.mean(metric)) is not None},
    )


def _spread(means: Iterable[float | None]) -> Spread:
    known = [mean for mean in means if mean is not None]
    return Spread(mean=_mean(known), sd=stdev(known) if len(known) > 1 else None)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _pairs(ours: Mapping[Cell, Trial], base: Mapping[Cell, Trial], metric: str) -> dict[str, tuple[float, float]]:
    """(baseline, candidate) of each item that both measured in the same fold with the same seed; means over those."""
    found: dict[str, list[tuple[float, float]]] = {}
    for cell, trial in ours.items():
        for item, figures in trial.items.items():
            theirs = base[cell].items.get(item, {}) if cell in base else {}
            if metric in figures and metric in theirs:
                found.setdefault(item, []).append((theirs[metric], figures[metric]))
    return {item: (fmean(b for b, _ in pairs), fmean(o for _, o in pairs)) for item, pairs in sorted(found.items())}


def _contrasts(by_name: Mapping[str, Mapping[Cell, Trial]], names: Sequence[str], metric: str) -> dict[str, Contrast]:
    higher = metric in METRICS and METRICS[metric].better == "higher"
    told = {}
    for name in names[1:]:
        differences = [ours - base for base, ours in _pairs(by_name[name], by_name[names[0]], metric).values()]
        if (difference := paired(differences)) is not None:
            signs = [each * (1 if higher else -1) for each in differences]
            told[name] = difference, sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
    corrected = holm([difference.p for difference, _, _ in told.values()])
    return {
        name: Contrast.of(difference, p_holm=p_holm, better=better, worse=worse)
        for (name, (difference, better, worse)), p_holm in zip(told.items(), corrected, strict=True)
    }


def _ranks(by_name: Mapping[str, Mapping[Cell, Trial]], names: Sequence[str], metric: str) -> dict[str, float]:
    """Mean rank of each candidate that was measured, over the items that all of those measured."""
    measured = [name for name in names if any(metric in f for t in by_name[name].values() for f in t.items.values())]
    items = sorted({item for name in measured for trial in by_name[name].values() for item in trial.items})
    if len(measured) < 2:
        return {}
    figures = np.array([[_of_item(by_name[name].values(), item, metric) for name in measured] for item in items])
    lower = metric not in METRICS or METRICS[metric].better == "lower"
    return dict(zip(measured, mean_ranks(figures, lower_is_better=lower) or (), strict=False))


def _of_item(trials: Iterable[Trial], item: str, metric: str) -> float:
    found = [trial.items[item][metric] for trial in trials if metric in trial.items.get(item, {})]
    return fmean(found) if found else math.nan


def _helps(rows: Sequence[Candidate], controls: Sequence[Control]) -> list[str]:
    found = [
        (contrast.mean, row.name)
        for row in rows
        if (figure := row.figures.get(SUM)) is not None
        and (contrast := figure.contrast) is not None
        and contrast.mean < 0
        and contrast.p_holm < ALPHA
        and beats_random_repair(row, controls)
    ]
    return [name for _, name in sorted(found)]


def _equal_dice(by_name: Mapping[str, Mapping[Cell, Trial]], names: Sequence[str]) -> list[EqualDice]:
    """Items on which Dice hardly differs and topology does, those with the largest difference first."""
    found = []
    images = {item: image for trials in by_name.values() for t in trials.values() for item, image in t.images.items()}
    for name in names[1:]:
        dice, betti, matching = (
            _pairs(by_name[name], by_name[names[0]], metric) for metric in ("dice", SUM, "betti_matching_error")
        )
        for item in dice.keys() & betti.keys() & matching.keys():
            apart = abs(betti[item][1] - betti[item][0]) + abs(matching[item][1] - matching[item][0])
            if abs(dice[item][1] - dice[item][0]) < EQUAL_DICE and apart > 0:
                found.append((-apart, item, name))
    return [
        EqualDice(
            item=item,
            image=images[item],
            candidate=name,
            dice=_pairs(by_name[name], by_name[names[0]], "dice")[item],
            betti_error=_pairs(by_name[name], by_name[names[0]], SUM)[item],
            betti_matching_error=_pairs(by_name[name], by_name[names[0]], "betti_matching_error")[item],
        )
        for _, item, name in sorted(found)[:MOST_CASES]
    ]
