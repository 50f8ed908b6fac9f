"""Maps the values of a mask to class names and class indexes.

A label map is posted as JSON: `{"membrane": 0}` says that the value 0 is membrane and everything else is background.
`{"vessel": [128, 255]}` gives several values one name; several names make several classes, in the order written. Two
names are special: "background" lists the values of class 0, "ignore" those that mean "not labelled", which no loss and
no metric looks at. A map that names the background is strict: a value it does not list is refused. With several classes
the background is 0 unless it is named or 0 is a class, so such a map is strict too: a stray value there could be any
class. Without a label map the values must speak for themselves: 0 with one other value is background and foreground, 0,
1, ... K are background and K classes. Anything else is refused with the values found, because guessing labels trains
the wrong network.

Beside integers a class may be given colours of an RGB mask ("#ff0000", alone or in a list), `"others"` for every value
that is not listed (`{"background": 0, "cell": "others"}` makes one class of numbered objects, and so does
`{"background": 0}`), or `"> 127"` for every value above a threshold, as masks need that compression or resampling
blurred.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import BadDataset, UnknownLabel

BACKGROUND, FOREGROUND, IGNORE_NAME = "background", "foreground", "ignore"
IGNORE = 255
"""The class index that `to_index` writes where a pixel is not labelled."""
MOST_CLASSES = 64
OTHERS = "others"
"""What a label map gives the class of every value that it does not list."""
MOST_OF_KINDS = 8
"""More values than this are rather numbers of objects than kinds of things."""
LOSSY_PART = 0.25
"""Of the range of values: how near an end a blurred value of one of two labels mostly lies."""
_SHOWN = 8  # values named in a message


@dataclass(frozen=True)
class LabelMap:
    """Which mask values belong to which class.

    classes   foreground class names and their mask values, in the order of their class indexes 1, 2, ...
    background   values of class 0, or None when every value that is not listed is background
    ignore    values that mean "not labelled"
    others    the class of every value that is not listed, as numbers of objects need; None: there is none
    above     labels are 1 where a mask is above this and 0 elsewhere, as blurred masks need; None: values as they are
    """

    classes: tuple[tuple[str, tuple[int, ...]], ...]
    background: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()
    others: str | None = None
    above: float | None = None

    @classmethod
    def parse(cls, posted: Mapping[str, Any], ignore: int | None = None) -> LabelMap:
        """From the JSON a caller posts (see the module); `ignore` adds one more value that means "not labelled".

        BadDataset when no class is left, there are too many, a value is none of those that can be said, or two names
        claim the same value.
        """
        above = {name: found for name, given in posted.items() if (found := _threshold(given)) is not None}
        if above:
            return cls._above(posted, *next(iter(above.items())))
        rest = [name for name, given in posted.items() if given == OTHERS]
        values = {name: () if given == OTHERS else _integers(name, given) for name, given in posted.items()}
        ignored = values.pop(IGNORE_NAME, ()) + (() if ignore is None else (ignore,))
        background = values.pop(BACKGROUND, None)
        if background and not values:  # everything but the background
            values, rest = {FOREGROUND: ()}, [FOREGROUND]
        if (
            background is None
            and (len(values) > 1 or rest)
            and not any(0 in each for each in [*values.values(), ignored])
        ):
            background = (0,)
        if len(rest) > 1 or (rest and rest[0] not in values):
            raise BadDataset(
                f'The label map gives {", ".join(rest)} "{OTHERS}". One foreground class can have the rest.'
            )
        map_ = cls(tuple(values.items()), background, tuple(dict.fromkeys(ignored)), rest[0] if rest else None)
        map_._refuse_impossible()
        return map_

    @classmethod
    def _above(cls, posted: Mapping[str, Any], name: str, above: float) -> LabelMap:
        if set(posted) - {name, BACKGROUND} or name in (BACKGROUND, IGNORE_NAME):
            raise BadDataset(
                f'The label map gives {name} the values "> {above:g}" beside other classes. A threshold makes one class'
                " and the background; drop the others."
            )
        return cls(((name, (1,)),), (0,), above=above)

    @classmethod
    def thresholded(cls, known: LabelMap | None, above: float) -> LabelMap:
        """One class of what is above a threshold, called as in a map that names one class; BadDataset where it names
        several.
        """
        if known is not None and (len(known.classes) > 1 or known.ignore):
            raise BadDataset(
                "A mask threshold makes one class and the background; the label map names"
                f" {', '.join(known.as_dict())}. Leave the threshold out, or name one class."
            )
        return cls(((known.classes[0][0] if known else FOREGROUND, (1,)),), (0,), above=above)

    @classmethod
    def infer(cls, values: Mapping[int, int] | Iterable[int]) -> LabelMap:
        """The map that the values of a whole dataset speak for, or UnknownLabel (see the module).

        values  how often each occurs, or only which
        """
        counts = dict(values) if isinstance(values, Mapping) else dict.fromkeys(values, 1)
        found = sorted(counts)
        others = [value for value in found if value != 0]
        if len(others) <= 1 and (0 in found or others in ([1], [255])):
            return cls(((FOREGROUND, tuple(others or [1])),), (0,))
        if found[0] >= 0 and found[-1] < MOST_CLASSES and set(range(1, found[-1] + 1)) <= set(found):
            return cls(tuple((f"class_{value}", (value,)) for value in range(1, found[-1] + 1)), (0,))
        raise UnknownLabel(
            f"The masks hold the values {_shown(found)}, which are neither 0 and one other nor 0, 1, 2, ... without"
            f" gaps. {_advice(counts)}"
        )

    @property
    def names(self) -> list[str]:
        """Class names by index, background first."""
        return [BACKGROUND, *(name for name, _ in self.classes)]

    @property
    def strict(self) -> bool:
        """True when a value that is not listed is refused."""
        return self.background is not None and self.others is None

    @property
    def ignore_index(self) -> int | None:
        """`IGNORE` when the map has values that mean "not labelled", else None."""
        return IGNORE if self.ignore else None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form that `parse` reads back."""
        if self.above is not None:
            return {self.classes[0][0]: f"> {self.above!r}"}
        named = {
            name: values
            for name, values in ((BACKGROUND, self.background), *self.classes, (IGNORE_NAME, self.ignore))
            if values
        }
        plain: dict[str, Any] = {
            name: values[0] if len(values) == 1 else list(values) for name, values in named.items()
        }
        return plain if self.others is None else plain | {self.others: OTHERS}

    def index_of(self) -> dict[int, int]:
        """Class index by mask value, for the values that are listed."""
        listed = dict.fromkeys(self.background or (), 0)
        for index, (_, values) in enumerate(self.classes, start=1):
            listed |= dict.fromkeys(values, index)
        listed |= dict.fromkeys(self.ignore, IGNORE)
        # A coloured mask with nothing but black, white and grey in it is read as grey.
        greys = {value & 255: index for value, index in listed.items() if value > 65535 and value % 65793 == 0}
        return greys | listed

    @property
    def unlisted_index(self) -> int:
        """Class index of a value that is not listed, where the map is not strict."""
        return 0 if self.others is None else self.names.index(self.others)

    def _refuse_impossible(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise BadDataset(
                f"The label map names {len(self.classes)} foreground classes; 1 to {MOST_CLASSES} are possible. Name"
                ' one, such as {"vessel": 255}.'
            )
        listed = [*(self.background or ()), *(value for _, values in self.classes for value in values), *self.ignore]
        twice = sorted({value for value in listed if listed.count(value) > 1})
        if twice:
            raise BadDataset(f"The label map lists {_shown(twice)} under more than one name. Give each value one name.")


def to_index(
    mask: np.ndarray, label_map: LabelMap | None = None, *, is_bilevel: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Class indexes of a mask, and the class names by index, background first.

    mask       (H, W) or (D, H, W) integers, as `decode_labels` gives them; not changed
    label_map  without one, `LabelMap.infer` of this mask's own values: infer over the whole dataset where there is one
    is_bilevel  the mask has one bit a pixel, read as 0 and 255: a map that lists 1 and not 255 means the bit
    returns    uint8 array of the same shape: 0 background, 1.. classes, `IGNORE` (255) where not labelled

    UnknownLabel, with values and counts, when the map is strict and the mask holds a value that it does not list.
    """
    mask = bits(mask, label_map) if is_bilevel and label_map is not None else mask
    counts = value_counts(mask)
    label_map = label_map or LabelMap.infer(counts)
    index_of = label_map.index_of()
    unknown = {value: count for value, count in counts.items() if value not in index_of}
    if label_map.strict and unknown:
        listed = ", ".join(f"{name} {values}" for name, values in label_map.as_dict().items())
        raise UnknownLabel(
            f'The mask holds {_counted(unknown)}; the label map lists {listed}. Correct the mask, or drop "background"'
            " from the map to count every other value as background."
        )
    unlisted = label_map.unlisted_index
    return _looked_up(mask, [(value, index_of.get(value, unlisted)) for value in counts]), label_map.names


def bits(mask: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """A mask of single bits, read as 0 and 255, as the 0 and 1 that the map lists; as it is when the map lists 255."""
    listed = label_map.index_of()
    return mask // 255 if 1 in listed and 255 not in listed else mask


def value_counts(mask: np.ndarray) -> dict[int, int]:
    """How often each value occurs, in ascending order of value."""
    if mask.dtype in (np.uint8, np.uint16):
        counts = np.bincount(mask.reshape(-1))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _looked_up(mask: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    if mask.dtype in (np.uint8, np.uint16):
        table = np.zeros(np.iinfo(mask.dtype).max + 1, np.uint8)
        for value, index in pairs:
            table[value] = index
        return table[mask]
    values, indexes = np.array(pairs).T  # ascending, and every value of the mask is among them
    return indexes.astype(np.uint8)[np.searchsorted(values, mask)]


def _integers(name: str, given: Any) -> tuple[int, ...]:
    values = [_number(value) for value in (given if isinstance(given, list | tuple) else [given])]
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise BadDataset(
            f'The label map gives "{name}" the values {given!r}; one integer or a list of integers is expected, such as'
            f' 255, or colours such as "#ff0000", "{OTHERS}" for every value that is not listed, or "> 127" for every'
            " value above a threshold."
        )
    return tuple(dict.fromkeys(values))


def _number(value: Any) -> Any:
    """A colour as the number that `decode_labels` reads it as."""
    return int(value[1:], 16) if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value) else value


def _threshold(given: Any) -> float | None:
    match = re.fullmatch(r">\s*(-?\d{1,9}(?:\.\d{1,9})?)", given) if isinstance(given, str) else None
    return float(match[1]) if match else None


def _advice(counts: Mapping[int, int]) -> str:
    """What to send where the values of masks do not speak for themselves."""
    low, high = min(counts), max(counts)
    if set(counts) == {0, 1, 255}:
        return 'Some masks seem to use 1 and others 255: post the label map {"vessel": [1, 255]}.'
    if high > 65535:
        return 'They are colours: post a label map such as {"vessel": "#ff0000"} that names those which are foreground.'
    if is_lossy(counts):
        return (
            "These look lossy, as JPEG and resampling leave masks: most pixels lie near the darkest and the lightest"
            f" value. Post `mask_threshold={(low + high) / 2:g}` to count what is above it as foreground."
        )
    if len(counts) > MOST_OF_KINDS and low == 0:
        return (
            'Numbers of objects? Then post the label map {"background": 0, "object": "others"}, which makes one class'
            ' of all but 0. Otherwise a map such as {"vessel": 255} that says which values are foreground.'
        )
    return 'Post a label map such as {"vessel": 255} that says which values are foreground.'


def is_lossy(counts: Mapping[int, int]) -> bool:
    """Whether values look like two that compression or resampling blurred: many, nearly all near the two ends."""
    low, high = min(counts), max(counts)
    near = sum(count for value, count in counts.items() if min(value - low, high - value) <= LOSSY_PART * (high - low))
    return (
        len(counts) > 2
        and high - low >= 32
        and min(counts[low], counts[high]) > 0
        and near >= 0.9 * sum(counts.values())
    )


def _shown(values: Iterable[int]) -> str:
    values = list(values)
    return ", ".join(map(_written, values[:_SHOWN])) + (
        f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    )


def _counted(counts: Mapping[int, int]) -> str:
    parts = [f"value {_written(value)} in {count} pixels" for value, count in list(counts.items())[:_SHOWN]]
    return ", ".join(parts) + (f" and {len(counts) - _SHOWN} more values" if len(counts) > _SHOWN else "")


def _written(value: int) -> str:
    return f"#{value:06x}" if value > 65535 else str(value)
