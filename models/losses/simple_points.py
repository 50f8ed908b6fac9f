"""Continuous-tone simple points (CSP): thinning of a soft map, differentiable, with the topology of its 0.5 level kept.

A pixel is removed as far as it is simple (a score near 1) and not the end of a line. The four parity classes of the plane are
thinned one after the other, so neighbours never go together. The image is held as its four classes (even or odd row, even or odd
column): then the neighbours of a class are whole arrays, shifted, and only a quarter of the image is touched at a time.
Outside is background. Source: the CSP paper (continuous simple points in the plane, 8/4), with its constants.
"""

import torch
import torch.nn.functional as F

from models.losses.pixels import foreground_pair, per_class_sum
from models.losses.skeletons import skeletons

SLOPE = 16.0  # alpha^2: how sharply a step between two neighbours is counted
STEP = 0.5  # steps larger than this count
WIDTH = 0.2  # k: how near to one background piece is simple
NOT_SIMPLE = 1e-4  # scores below count as 0 (no or two pieces score 4e-6), so that what cannot go is not looked at again
ORDER = ((1, 1), (0, 1), (1, 0), (0, 0))  # row odd and column odd first
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # NW N NE E SE S SW W


def split_parities(image):
    """(..., 2h, 2w) to {(row parity, column parity): (..., h, w)}; odd sides are filled up with background."""
    image = F.pad(image, [0, image.shape[-1] % 2, 0, image.shape[-2] % 2])
    return {(a, b): image[..., a::2, b::2] for a, b in ORDER}


def join_parities(parts, sides):
    """The inverse of `split_parities`, cut to the given sides."""
    rows = [torch.stack([parts[a, 0], parts[a, 1]], -1).flatten(-2) for a in (0, 1)]
    return torch.stack(rows, -2).flatten(-3, -2)[..., : sides[0], : sides[1]]


CUT = {-1: slice(None, -2), 0: slice(1, -1), 1: slice(2, None)}
"""The part of an array with a frame of one pixel that lies one step before, at, or one step after each of its pixels."""


def _neighbours(framed, parity):
    """(8, ...) neighbours of every pixel of a class, in cyclic order from the north-west; all four classes are framed by background."""
    around = []
    for down, right in RING:
        (row_step, row), (column_step, column) = divmod(parity[0] + down, 2), divmod(parity[1] + right, 2)
        around.append(framed[row, column][..., CUT[row_step], CUT[column_step]])
    return torch.stack(around)


def _steps(around):
    """For neighbours (8, ...): which are kept, the step to the next one, which steps cross 0.5, and the sigmoid of each height."""
    empty = 1 - around
    open_ = (empty > 0.5).to(around.dtype)
    sides = open_[1::2]  # N E S W
    beside = torch.maximum(sides, sides.roll(1, 0))  # corner NW lies between W and N, NE between N and E, ...
    kept = torch.stack([beside, sides], 1).flatten(0, 1)
    ring, above = empty * kept, open_ * kept
    step = ring.roll(-1, 0) - ring
    crossing = (above.roll(-1, 0) - above).abs()
    height = step.abs() * (1 - crossing) + crossing
    return kept, step, crossing, torch.sigmoid(SLOPE * (height - STEP))


def simplicity(around):
    """How simple a pixel is, 0 to 1, from its eight neighbours (8, ...) in [0, 1]: near 1 for exactly one piece of background.

    Background pieces are counted as half the number of steps around the ring of complements, corners without a background side left out. A step
    across 0.5 counts fully and carries no gradient; a smaller one counts by a sigmoid of its height.
    """
    return _score(_steps(around)[-1].sum(0) / 2 - 1)


def _score(excess):
    """Simplicity of a pixel whose background has one piece more than `excess` says."""
    return F.threshold(torch.exp(-(excess**2) / (2 * WIDTH**2)), NOT_SIMPLE, 0.0)


def _simplicity_back(around, gradient):
    """Simplicity of pixels with neighbours (8, A), and the gradient (8, A) that (A,) on it sends to the neighbours."""
    kept, step, crossing, counted = _steps(around)
    excess = counted.sum(0) / 2 - 1
    simple = _score(excess)
    to_pieces = gradient * simple * excess / -(WIDTH**2)
    to_step = to_pieces / 2 * SLOPE * counted * (1 - counted) * (1 - crossing) * step.sign()
    return simple, kept * (to_step - to_step.roll(1, 0))


def _not_ends(image):
    """True where a foreground (0.5 and more) neighbour is not the only one: only such pixels may go."""
    solid = (image >= 0.5).to(image.dtype)
    rows = F.pad(solid, [0, 0, 1, 1])
    rows = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    rows = F.pad(rows, [1, 1])
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] - solid >= 2


def _of_parity(chosen, a, b):
    """Linear indices of the chosen pixels of one parity class of a framed array."""
    part = chosen[..., 1 + a :: 2, 1 + b :: 2].nonzero().T
    places = (*part[:-2], 2 * part[-2] + 1 + a, 2 * part[-1] + 1 + b)
    linear = places[0]
    for place, length in zip(places[1:], chosen.shape[1:]):
        linear = linear * length + place
    return linear


class _Thinning(torch.autograd.Function):
    """Sweeps over the pixels that may go and near which something has changed; remembers what was removed, so the way back undoes it."""

    @staticmethod
    def forward(ctx, image, iterations):
        framed = F.pad(image, [1, 1, 1, 1])
        width = framed.shape[-1]
        flat = framed.reshape(-1)  # of a fresh array, so the caller's is left alone
        around = torch.tensor([down * width + right for down, right in RING], device=image.device)[:, None]
        ctx.around, ctx.history = around, []
        inside = F.pad(torch.ones_like(image, dtype=torch.bool), [1, 1, 1, 1])
        stirred = torch.ones_like(flat, dtype=torch.bool)
        for _ in range(iterations):
            may_go = (_not_ends(framed) & inside).view(-1)
            candidates, stirred = stirred & may_go, torch.zeros_like(stirred)
            for a, b in ORDER:
                at = _of_parity(candidates.view(framed.shape), a, b)
                held = flat[at]
                simple = simplicity(flat[at + around])
                gone = (simple * held).nonzero().flatten()
                at, held = at[gone], held[gone]
                flat[at] = held * (1 - simple[gone])
                ctx.history.append((at, held))
                nearby = (at + around).flatten()
                candidates[nearby] = may_go[nearby]
                stirred[at] = stirred[nearby] = True
            if not stirred.any():
                break
        ctx.save_for_backward(framed)
        return framed[..., 1:-1, 1:-1].clone()

    @staticmethod
    def backward(ctx, gradient):
        flat = ctx.saved_tensors[0].clone().view(-1)
        framed = F.pad(gradient, [1, 1, 1, 1])
        back = framed.view(-1)
        for at, held in reversed(ctx.history):
            flat[at] = held
            after = back[at]
            simple, to_around = _simplicity_back(flat[at + ctx.around], -after * held)
            back[at] = after * (1 - simple)
            back.index_add_(0, (at + ctx.around).flatten(), to_around.flatten())
        return framed[..., 1:-1, 1:-1], None


def _thin_everywhere(image, iterations):
    """The same sweeps on whole arrays, in few operations that every runtime knows: what is exported."""
    sides = image.shape[-2:]
    for _ in range(iterations):
        parts, guard = split_parities(image), split_parities(_not_ends(image).to(image.dtype))
        framed = {parity: F.pad(part, [1, 1, 1, 1]) for parity, part in parts.items()}
        for parity in ORDER:
            parts[parity] = parts[parity] * (1 - simplicity(_neighbours(framed, parity)) * guard[parity])
            framed[parity] = F.pad(parts[parity], [1, 1, 1, 1])
        image = join_parities(parts, sides)
    return image


def csp_skeleton(image, iterations):
    """Soft skeleton of (N, K, rows, columns) maps in [0, 1]; its 0.5 level has the Betti numbers of the map's (8/4).

    iterations  sweeps, each peels about one pixel from every side; at least the largest half width
    Memory grows with the pixels that are removed, not with iterations times image.
    """
    return _thin_everywhere(image, iterations) if torch.compiler.is_exporting() else _Thinning.apply(image, iterations)


def csp_skeleton_loss(logits, target, *, iterations=10, smooth=1e-6, ignore=None):
    """1 - harmonic mean of how much of each CSP skeleton lies in the other map; mean over foreground classes, (N,), each in [0, 1].

    iterations  1 to 50 sweeps; at least the largest half width in pixels
    smooth      > 0; added to numerator and denominator of both ratios, so that an empty skeleton costs nothing
    In the plane only. The form of soft clDice, with a skeleton whose topology is that of the map. The target's skeleton is that of exact
    thinning by the same rule, which is what the soft one tends to on a mask.
    Source: the CSP paper; smooth is 1e-6 as its text says (the published training call puts the ignore index there).
    """
    if logits.ndim != 4:
        raise ValueError(f"csp_skeleton_loss reads images of 2 axes; these have {logits.ndim - 2}. Use soft_cldice or skeleton_recall.")
    prob, member, known = foreground_pair(logits, target, ignore)
    prob = torch.where(known, prob, 0)
    true_skeleton = skeletons(member).to(prob.dtype)
    member = member.to(prob.dtype)
    skeleton = csp_skeleton(prob, iterations)
    sensitivity = (per_class_sum(prob * true_skeleton) + smooth) / (per_class_sum(true_skeleton) + smooth)
    precision = (per_class_sum(member * skeleton) + smooth) / (per_class_sum(skeleton) + smooth)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean(1)
