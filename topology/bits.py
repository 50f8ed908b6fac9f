"""Masks as machine words: 64 pixels of a line in one uint64, and the two instructions that make this worth while."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def count_ones(typingctx, word):
    """Number of set bits of a uint64."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return (types.uint64(types.uint64), generate) if isinstance(word, types.Integer) else None


@intrinsic
def lowest_one(typingctx, word):
    """Position of the lowest set bit of a uint64; the word must not be 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return (types.uint64(types.uint64), generate) if isinstance(word, types.Integer) else None


def pack_lines(volume):
    """(planes, rows, words) uint64 of a 0/1 uint8 volume; bit k of word w is column 64 w + k, the rest is 0."""
    planes, rows, columns = volume.shape
    words = (columns + 63) // 64
    packed = np.zeros((planes, rows, words * 8), np.uint8)
    packed[:, :, : (columns + 7) // 8] = np.packbits(volume, axis=2, bitorder="little")
    return packed.view("<u8")
