"""Compares what repairs a prediction: losses on a logit map, and `topology.simplify`.

    OMP_NUM_THREADS=1 python benchmarks/repairs.py                                                # drawn errors
    OMP_NUM_THREADS=1 python benchmarks/repairs.py --data ../shared/data/isbi12 --foreground 0    # those of a young
    U-Net
    OMP_NUM_THREADS=1 python benchmarks/repairs.py --masks --data ../shared/data/chase_db1        # whole masks of it

Drawn: a break, a false bridge, a false hole, an island, each with soft values, one error a map; repaired means that no
wrong region is left whose correction would change a Betti number. Real: a small U-Net is trained for a few steps on all
images but the last fifth (in order of names), and sees crops of that fifth; the error is the Betti-matching error at
0.5. Adam, 0.1 a step, at most 200 steps. Milliseconds are process CPU time of the loss alone, forward and backward.
Seeded; nothing is written.

Masks: the same U-Net predicts whole images of that fifth, given in several forms; wanted are one component and no
loop, or the numbers of the reference where the mask has more. Peers: keep the largest components and fill the smallest
holes; and a random repair, which erases or bridges [fills or opens] each surplus component [hole] by the toss of a
coin, along the same paths.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.losses import LOSSES, RULE_LOSSES
from models.losses.neighbours import worst_neighbour
from models.networks import build
from topology.components import betti_numbers, label_components, label_holes, sizes_and_boxes
from topology.edited_mask import BACKGROUND, FOREGROUND, EditedMask
from topology.matching import match
from topology.regions import region_graph
from topology.simplify import simplify_to

STEPS, RATE = 200, 0.1
SIDE = 24
DAMAGES = ("break", "bridge", "hole", "island")
CROP = 128


def drawing():
    """(1, 24, 24) target: two bars and a block."""
    target = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    target[:, 3:6, 2:22] = target[:, 9:12, 2:22] = target[:, 15:22, 4:14] = 1
    return target


def damaged(damage):
    """(1, 1, 24, 24) logits that see the drawing but for one error."""
    logits = drawing().unsqueeze(1).float() * 4 - 2
    rows = torch.linspace(-0.05, 0.05, SIDE)  # no two pixels alike, so that no order of equal values decides
    logits = logits + rows[:, None] + 0.7 * rows[None]
    if damage == "break":
        logits[..., 3:6, 10:13] = logits[..., 3:6, 10:13] * 0.4 - 1.7
    elif damage == "bridge":
        logits[..., 6:9, 10:13] = logits[..., 6:9, 10:13] * 0.4 + 1.7
    elif damage == "hole":
        logits[..., 17:20, 8:11] = logits[..., 17:20, 8:11] * 0.4 - 1.7
    elif damage == "island":
        logits[..., 17:20, 18:21] = logits[..., 17:20, 18:21] * 0.4 + 1.7
    return logits


def critical_regions(prediction, reference):
    """Number of wrong regions whose correction changes a Betti number."""
    return int(region_graph(prediction, reference).critical.sum())


def matching_error(prediction, reference):
    """Betti-matching error of two masks: features without a partner."""
    return match(prediction, reference).error


def descend(loss, logits, target, wrong, *, steps=STEPS, **options):
    """Descend a loss alone: ([errors before the first step and after each], CPU seconds of the loss, logits at the
    end).

    logits  (1, 1, rows, columns); target (1, rows, columns); wrong: counts the errors of two masks
    Ends when nothing is wrong, or after `steps`.
    """
    logits, truth = logits.clone().requires_grad_(), target[0].numpy() > 0
    optimizer = torch.optim.Adam([logits], lr=RATE)
    errors, seconds = [wrong(logits[0, 0].detach().numpy() > 0, truth)], 0.0
    while errors[-1] and len(errors) <= steps:
        optimizer.zero_grad()
        began = time.process_time()
        loss(logits, target, **options).sum().backward()
        seconds += time.process_time() - began
        optimizer.step()
        errors.append(wrong(logits[0, 0].detach().numpy() > 0, truth))
    return errors, seconds, logits.detach()


def repair(loss, damage, **options):
    """Steps until a drawn error is gone, or None; and CPU seconds of the loss."""
    errors, seconds, _ = descend(loss, damaged(damage), drawing(), critical_regions, **options)
    assert errors[0] > 0
    return (None if errors[-1] else len(errors) - 1), seconds


def scnp(logits, target):
    """Cross-entropy on the logits of the worst neighbours."""
    return LOSSES["cross_entropy"](worst_neighbour(logits, target), target)


OPTIONS = {"betti_prior": {"priors": [{"classes": [1], "betti": [3, 0]}]}, "topology_layer": {"skip": 2}}
TABLE = {
    "neighbour_penalty": scnp,
    **{name: loss for name, loss in LOSSES.items() if name not in RULE_LOSSES},
}
LOCATED = ("topo_loss", "betti_matching", "dmt_loss", "topograph", "dense_matching", "cross_entropy")


def drawn(names):
    """Print the table of drawn errors."""
    print(f"| loss | {' | '.join(DAMAGES)} | ms a step | ms for all four |\n|---|{'---|' * (len(DAMAGES) + 2)}")
    for name in names:
        repair(TABLE[name], "break", **OPTIONS.get(name, {}))  # warm
        found = [repair(TABLE[name], damage, **OPTIONS.get(name, {})) for damage in DAMAGES]
        steps, seconds = sum(n or STEPS for n, _ in found), sum(s for _, s in found)
        cells = ["-" if n is None else str(n) for n, _ in found]
        total = "-" if "-" in cells else f"{1000 * seconds:.0f}"
        print(f"| {name} | {' | '.join(cells)} | {1000 * seconds / steps:.1f} | {total} |", flush=True)


def read(folder, foreground):
    """[(float32 image (rows, columns) of mean 0 and deviation 1, int64 mask)] of a folder with images/ and masks/, in
    order of names.
    """
    pairs = []
    for image, mask in zip(sorted((folder / "images").iterdir()), sorted((folder / "masks").iterdir()), strict=True):
        grey = np.asarray(Image.open(image).convert("RGB"), np.float32)[..., 1]  # green, where vessels are darkest
        member = np.asarray(Image.open(mask).convert("L")) == foreground
        pairs.append(((grey - grey.mean()) / grey.std(), member.astype(np.int64)))
    return pairs


def crop(pair, random):
    """The same random square of an image and its mask."""
    row, column = (random.integers(0, side - CROP + 1) for side in pair[0].shape)
    return [torch.from_numpy(array[row : row + CROP, column : column + CROP].copy()) for array in pair]


def young_network(pairs, steps, random):
    """A U-Net of 16, 32 and 64 channels after so many steps of Adam on cross-entropy + Dice, four crops each."""
    network = build({"channels": [16, 32, 64], "dimensions": 2}, channels_in=1, channels_out=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        images, targets = (
            torch.stack(side)
            for side in zip(*(crop(pairs[random.integers(len(pairs))], random) for _ in range(4)), strict=True)
        )
        logits = network(images[:, None])
        optimizer.zero_grad()
        (LOSSES["cross_entropy"](logits, targets) + LOSSES["dice"](logits, targets)).mean().backward()
        optimizer.step()
    return network.eval()


def learnt(folder, foreground, steps):
    """The last fifth of the pairs of a folder, a network that learnt from the others, and its random numbers."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    pairs = read(folder, foreground)
    held_out = pairs[-(len(pairs) // 5) :]
    return held_out, young_network(pairs[: -len(held_out)], steps, random), random


def predictions(folder, foreground, steps, count):
    """[(logits (1, 1, rows, columns), target (1, rows, columns))] of crops that have foreground and at least five
    errors.
    """
    held_out, network, random = learnt(folder, foreground, steps)
    found = []
    while len(found) < count:
        image, target = crop(held_out[len(found) % len(held_out)], random)
        with torch.no_grad():
            logits = network(image[None, None])
        if matching_error(logits[0, 0].numpy() > 0, target.numpy() > 0) >= 5:
            found.append((logits, target[None]))
    return found


def reached(errors, share):
    """Steps until at most `share` of the errors is left, None if that does not happen."""
    return next((step for step, left in enumerate(errors) if left <= share * errors[0]), None)


def overlap(logits, target):
    """Dice of the mask at 0.5."""
    ours, truth = logits[0, 0].numpy() > 0, target[0].numpy() > 0
    return 2 * (ours & truth).sum() / (ours.sum() + truth.sum())


def spoilt(before, after, target):
    """Share of the pixels that were right and are now wrong."""
    wrong = [(logits[0, 0].numpy() > 0) != (target[0].numpy() > 0) for logits in (before, after)]
    return (wrong[1] & ~wrong[0]).mean()


def real(names, maps):
    """Print the table of real predictions: medians over the maps of steps and of milliseconds of the loss."""
    before = np.mean([overlap(*pair) for pair in maps])
    total = sum(matching_error(logits[0, 0].numpy() > 0, target[0].numpy() > 0) for logits, target in maps)
    print(f"{len(maps)} crops of {CROP} x {CROP}, {total} errors, Dice {before:.3f}\n")
    print(
        "| loss | errors repaired | maps at 50 % / 90 % / 100 % | median steps to 50 % / 90 % / 100 % | ms a step | ms"
        " to 90 % | Dice after | spoilt |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        LOSSES[name](*maps[0]).sum()  # warm
        runs = [descend(LOSSES[name], *pair, matching_error) for pair in maps]
        steps = {share: [reached(errors, 1 - share) for errors, _, _ in runs] for share in (0.5, 0.9, 1.0)}
        ms = [1000 * seconds / (len(errors) - 1) for errors, seconds, _ in runs]
        medians = [np.median([np.inf if n is None else n for n in found]) for found in steps.values()]
        spent = np.median([np.inf if n is None else n * each for n, each in zip(steps[0.9], ms, strict=True)])
        pairs = [(start, end, target) for (_, _, end), (start, target) in zip(runs, maps, strict=True)]
        cells = [
            f"{100 * (1 - sum(errors[-1] for errors, _, _ in runs) / total):.0f} %",
            " / ".join(str(sum(n is not None for n in found)) for found in steps.values()),
            " / ".join("-" if np.isinf(n) else f"{n:.0f}" for n in medians),
            f"{np.mean(ms):.1f}",
            "-" if np.isinf(spent) else f"{spent:.0f}",
            f"{np.mean([overlap(end, target) for _, end, target in pairs]):.3f}",
            f"{100 * np.mean([spoilt(*each) for each in pairs]):.2f} %",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# Whole masks ---------------------------------------------------------------------------------------------------------


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def noisy(logits):
    """Probabilities with noise of deviation 0.2 in each pixel, as an overfit network or a compressed map has it."""
    return np.clip(sigmoid(logits) + np.random.default_rng(0).normal(0, 0.2, logits.shape), 0, 1)


FORMS = {
    "probability": (sigmoid, 0.5),
    "8 bit": (lambda logits: np.rint(255 * sigmoid(logits)).astype(np.uint8), 127.5),
    "saturated": (lambda logits: sigmoid(20 * logits).astype(np.float32), 0.5),
    "hard mask": (lambda logits: logits > 0, 0.5),
    "logits clipped to 0..1": (lambda logits: np.clip(logits, 0, 1), 0.0),
    "noisy": (noisy, 0.5),
}


def by_total_change(values, threshold, wanted):
    """`topology.simplify`."""
    return simplify_to(values, wanted, threshold=threshold, partial=True, time_limit_s=None).values > threshold


def keep_largest(values, threshold, wanted):
    """The largest components stay, the smallest holes are filled."""
    mask = values > threshold
    for side, (find, keep) in enumerate(zip((label_components, label_holes), wanted, strict=True)):
        labels, count = find(mask)
        given_up = np.argsort(-sizes_and_boxes(labels, count)[0], kind="stable")[keep:] + 1
        mask = mask | np.isin(labels, given_up) if side else mask & ~np.isin(labels, given_up)
    return mask


def toss(values, threshold, wanted, *, random):
    """Each surplus component and hole is given up or joined at random."""
    edited = EditedMask(np.ascontiguousarray(values, np.float32), threshold, "closed")
    for side, keep in ((FOREGROUND, wanted[0]), (BACKGROUND, wanted[1] + 1)):
        components = edited.components(side)
        order = np.argsort(-components.masses, kind="stable")
        stays = random.random(len(order)) < 0.5
        stays[order[:keep]] = True
        regions = edited.regions(side, components.labels, len(components))
        edited.give_up(side, components, ~stays, "give up", 0)
        paths = (regions.between(*ends) for ends in regions.paths().ends)
        edited.join(side, components, paths, most=max(stays.sum() - keep, 0), kind="join", dimension=0)
    return edited.mask[edited.inner] > 0


def whole_masks(folder, foreground, steps, count):
    """[(logits (rows, columns), reference bool)] of held-out images."""
    held_out, network, _ = learnt(folder, foreground, steps)
    found = []
    for image, mask in held_out[:count]:
        spare = [(0, -side % 4) for side in image.shape]
        with torch.no_grad():
            logits = network(torch.from_numpy(np.pad(image, spare, mode="edge"))[None, None])[0, 0].numpy()
        found.append((logits[: image.shape[0], : image.shape[1]], mask > 0))
    return found


def masks(maps):
    """Print the table of whole masks, sums or means over the maps."""
    print(f"{len(maps)} masks of {maps[0][0].shape}\n")
    print("| map | wanted | repair | reached | pixels | total change | Dice | errors | CPU ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for form, (make, threshold) in FORMS.items():
        given = [(make(logits), truth) for logits, truth in maps]
        report_masks(
            form, "", "none", threshold, given, lambda values, threshold, _: values > threshold, [None] * len(maps)
        )
        for name, numbers in (("(1, 0)", lambda mask, truth: (1, 0)), ("reference", at_most)):
            wanted = [numbers(values > threshold, truth) for values, truth in given]
            random = np.random.default_rng(0)
            for repair_name, tool in (
                ("least total change", by_total_change),
                ("keep largest, fill smallest", keep_largest),
                ("random", partial(toss, random=random)),
            ):
                report_masks(form, name, repair_name, threshold, given, tool, wanted)


def at_most(mask, truth):
    """The Betti numbers of the reference, or of the mask where it has fewer."""
    return tuple(min(pair) for pair in zip(betti_numbers(mask), betti_numbers(truth), strict=True))


def report_masks(form, name, repair_name, threshold, given, tool, wanted):
    """Print one row of the table of whole masks."""
    rows = []
    for (values, truth), numbers in zip(given, wanted, strict=True):
        before = values > threshold
        began = time.process_time()
        after = tool(values, threshold, numbers)
        spent = time.process_time() - began
        sure = np.abs(values.astype(np.float64) - threshold)
        rows.append(
            (
                numbers is None or betti_numbers(after) == numbers,
                (after != before).sum(),
                sure[after != before].sum(),
                2 * (after & truth).sum() / (after.sum() + truth.sum()),
                matching_error(after, truth),
                1000 * spent,
            )
        )
    reached, pixels, change, dice, errors, spent = np.array(rows, float).T
    print(
        f"| {form} | {name} | {repair_name} | {int(reached.sum())} of {len(rows)} | {pixels.mean():.0f} |"
        f" {change.mean():.1f} | {dice.mean():.4f} | {errors.mean():.0f} | {spent.mean():.0f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images/ and masks/: repair real predictions")
    parser.add_argument("--foreground", type=int, default=255, help="value of the structure in the masks")
    parser.add_argument("--train", type=int, default=300, help="steps of the U-Net")
    parser.add_argument("--maps", type=int, default=8, help="crops, or whole masks")
    parser.add_argument("--only", nargs="*", help="names of losses")
    parser.add_argument("--masks", action="store_true", help="repair whole masks of a network, without a loss")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.masks:
        masks(whole_masks(options.data, options.foreground, options.train, options.maps))
    elif options.data is None:
        drawn(options.only or TABLE)
    else:
        real(options.only or LOCATED, predictions(options.data, options.foreground, options.train, options.maps))


if __name__ == "__main__":
    main()
