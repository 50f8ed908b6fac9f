"""Masks as machine words: 64 pixels of a line in one uint64."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Whole = int | np.integer
"""A whole number: compiled code does not tell Python's from numpy's."""
_Code = tuple[Any, Callable[..., Any]] | None  # what numba asks of an intrinsic: its signature, and what writes it


@intrinsic
def _count_ones(typingctx: Any, word: types.Type) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return (types.uint64(types.uint64), generate) if isinstance(word, types.Integer) else None


@intrinsic
def _lowest_one(typingctx: Any, word: types.Type) -> _Code:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return (types.uint64(types.uint64), generate) if isinstance(word, types.Integer) else None


count_ones = cast(Callable[[Whole], Whole], _count_ones)
"""Number of set bits of a uint64, in kernels."""
lowest_one = cast(Callable[[Whole], Whole], _lowest_one)
"""Position of the lowest set bit of a uint64, in kernels; the word must not be 0."""


def pack_lines(volume: np.ndarray) -> np.ndarray:
    """(planes, rows, words) uint64 of a 0/1 uint8 volume; bit k of word w is column 64 w + k, the rest is 0."""
    planes, rows, columns = volume.shape
    words = (columns + 63) // 64
    packed = np.zeros((planes, rows, words * 8), np.uint8)
    packed[:, :, : (columns + 7) // 8] = np.packbits(volume, axis=2, bitorder="little")
    return packed.view("<u8")
