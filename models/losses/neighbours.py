"""Losses that look at a pixel together with its neighbours."""

import torch

from models.losses.pixels import labelled, one_hot
from models.losses.skeletons import MAX_POOL


def worst_neighbour(logits, target, *, window=3, ignore=None):
    """SCNP: each logit replaced by the worst logit of its own class nearby; same shape, for any loss to read.

    window  odd, >= 3: side of the square (cube) that is searched; about the width of the structure works best
    In the channel of a class a member takes the smallest logit among the members in its window, any other pixel the largest
    among the others. So a pixel is right only when its whole neighbourhood is, and the gradient goes to the worst neighbour.
    Unlabelled pixels are in neither group and keep their own logit. The border has no neighbours outside the image.
    Not for structures of a few hundred pixels: there one pixel speaks for all.
    Source: Valverde and Dahl, CVPR 2026; infinities here where the published code adds 9999, so that half precision is safe.
    """
    pool = MAX_POOL[logits.ndim - 2]
    member = one_hot(target, logits, ignore)
    known = labelled(target, ignore)
    lowest = torch.finfo(logits.dtype).min
    smallest = -pool(torch.where(member, -logits, lowest), window, 1, window // 2)
    largest = pool(torch.where(known & ~member, logits, lowest), window, 1, window // 2)
    return torch.where(known, torch.where(member, smallest, largest), logits)
