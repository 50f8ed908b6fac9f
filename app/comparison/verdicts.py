"""The verdict of a comparison in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.schemas.comparison_answers import Candidate, CandidateFigure, Control

ALPHA = 0.05
"""p below this, after correction, is beyond chance."""


MOST_DICE_LOST = 0.005
"""Part of the baseline's Dice that a candidate may lose and still count as keeping it."""
LOCATED = "betti_matching_error"
"""The figure in which a candidate must beat random repair: unlike the Betti errors it asks where features are."""


def beats_random_repair(row: Candidate, controls: Sequence[Control]) -> bool:
    """Its features are matched better than those of the baseline's masks after random edits; True where those were not
    measured.
    """
    edited = next((control.figures.get(LOCATED) for control in controls if control.name == "random_repair"), None)
    ours = row.figures.get(LOCATED)
    if edited is None or ours is None or edited.spread.mean is None or ours.spread.mean is None:
        return True
    return ours.spread.mean < edited.spread.mean


def dice_lost(row: Candidate) -> float | None:
    """Part of the baseline's Dice that a candidate loses; None where that was not measured."""
    dice = row.figures.get("dice")
    if dice is None or dice.contrast is None:
        return None
    return -dice.contrast.mean / max((dice.spread.mean or 0.0) - dice.contrast.mean, 1e-9)


def verdict_of(
    rows: Sequence[Candidate],
    helps: Sequence[str],
    *,
    images: int,
    complete: bool,
    possible: float,
    controls: Sequence[Control],
) -> str:
    """Which candidates lower the Betti error beyond chance, or that none does, or why that cannot be told.

    possible  the smallest corrected p that so many images can give
    """
    so_far = "" if complete else "So far: "
    if not rows or not rows[0].measured:
        if not complete:
            return "The baseline has not been measured yet."
        reasons = " ".join(rows[0].failures) if rows else ""
        return f"The baseline could not be measured, so there is nothing to compare with. {reasons}".rstrip()
    contrasted = {row.name: row.figures["betti_error"] for row in rows if _contrast(row) is not None}
    if not contrasted:
        return so_far + "No candidate has been measured on an image that the baseline was measured on."
    if helps:
        best = next(row for row in rows if row.name == helps[0])
        others = f" {', '.join(helps[1:])}: lower, too." if helps[1:] else ""
        return (
            so_far
            + _gain(best, rows[0])
            + _keeping_dice(best, rows, helps)
            + others
            + _beaten(contrasted, rows, controls)
        )
    if possible >= ALPHA:
        return (
            f"{so_far}{images} {'image is' if images == 1 else 'images are'} too few to tell: even if a candidate were"
            f" better on each of them, p could not be below {possible:.2g} after correction for {len(rows) - 1}"
            " candidates. Label more images, hold out more folds, or name fewer losses."
        )
    harms = [name for name, figure in contrasted.items() if _worse(figure)]
    worse = f" {', '.join(harms)}: higher, beyond chance." if harms else ""
    return (
        f"{so_far}None of them helps here: no candidate has a lower Betti error than {rows[0].name} beyond chance"
        f" ({images} images, p below {ALPHA:g} after Holm's correction).{worse}{_beaten(contrasted, rows, controls)}"
    )


def _keeping_dice(best: Candidate, rows: Sequence[Candidate], helps: Sequence[str]) -> str:
    """A sentence on the best candidate that keeps Dice, where the best of all does not."""
    if (dice_lost(best) or 0.0) <= MOST_DICE_LOST:
        return ""
    kept = f" {100 * MOST_DICE_LOST:g} % of Dice"
    for name in helps[1:]:
        row = next(each for each in rows if each.name == name)
        contrast = row.figures["betti_error"].contrast
        if contrast is not None and (dice_lost(row) or 0.0) <= MOST_DICE_LOST:
            before = rows[0].figures["betti_error"].spread.mean or 0.0
            share = f" ({100 * contrast.mean / before:+.0f} %)" if before else ""
            return f" Of those that lose no more than{kept} {name} is best, {contrast.mean:+.3g}{share}."
    return f" It loses more than{kept}, as do all that help."


def _beaten(contrasted: Mapping[str, CandidateFigure], rows: Sequence[Candidate], controls: Sequence[Control]) -> str:
    """A sentence on candidates that lower the Betti error and match features no better than random edits do."""
    names = [
        row.name
        for row in rows
        if (figure := contrasted.get(row.name)) is not None
        and figure.contrast is not None
        and figure.contrast.mean < 0
        and figure.contrast.p_holm < ALPHA
        and not beats_random_repair(row, controls)
    ]
    said = "lower, but with features matched no better than after edits at random places, so it counts as no help"
    return f" {', '.join(names)}: {said}." if names else ""


def _contrast(row: Candidate) -> CandidateFigure | None:
    figure = row.figures.get("betti_error")
    return figure if figure is not None and figure.contrast is not None else None


def _worse(figure: CandidateFigure) -> bool:
    return figure.contrast is not None and figure.contrast.mean > 0 and figure.contrast.p_holm < ALPHA


def _gain(best: Candidate, baseline: Candidate) -> str:
    figure, dice = best.figures["betti_error"], best.figures.get("dice")
    contrast = figure.contrast
    assert contrast is not None and figure.spread.mean is not None
    before = baseline.figures["betti_error"].spread.mean or 0.0
    share = f"{100 * contrast.mean / before:+.0f} %, " if before else ""
    of_dice = f", Dice {dice.contrast.mean:+.3f}" if dice is not None and dice.contrast is not None else ""
    interval = (
        f"95 % interval {contrast.low:+.3g} to {contrast.high:+.3g}, "
        if contrast.low is not None and contrast.high is not None
        else ""
    )
    return (
        f"{best.name} lowers the Betti error of {baseline.name}, {before:.3g} an image, by {-contrast.mean:.3g}"
        f" ({share}{interval}p = {contrast.p_holm:.2g} corrected, {contrast.images} images){of_dice}."
    )
