"""Maps the values of a mask to class names and class indexes.

A label map is posted as JSON: `{"membrane": 0}` says that the value 0 is membrane and everything else is background.
`{"vessel": [128, 255]}` gives several values one name; several names make several classes, in the order written. Two
names are special: "background" lists the values of class 0, "ignore" those that mean "not labelled", which no loss and
no metric looks at. A map that names the background is strict: a value it does not list is refused. With several classes
the background is 0 unless it is named or 0 is a class, so such a map is strict too: a stray value there could be any
class. Without a label map the values must speak for themselves: 0 with one other value is background and foreground, 0,
1, ... K are background and K classes. Anything else is refused with the values found, because guessing labels trains
the wrong network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from app.errors import BadDataset, UnknownLabel

BACKGROUND, FOREGROUND, IGNORE_NAME = "background", "foreground", "ignore"
IGNORE = 255
"""The class index that `to_index` writes where a pixel is not labelled."""
MOST_CLASSES = 64
_SHOWN = 8  # values named in a message


@dataclass(frozen=True)
class LabelMap:
    """Which mask values belong to which class.

    classes   foreground class names and their mask values, in the order of their class indexes 1, 2, ...
    background   values of class 0, or None when every value that is not listed is background
    ignore    values that mean "not labelled"
    """

    classes: tuple[tuple[str, tuple[int, ...]], ...]
    background: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()

    @classmethod
    def parse(cls, posted: Mapping[str, int | list[int]], ignore: int | None = None) -> LabelMap:
        """From the JSON a caller posts (see the module); `ignore` adds one more value that means "not labelled".

        BadDataset when no class is left, there are too many, a value is not an integer, or two names claim the same
        value.
        """
        values = {name: _integers(name, given) for name, given in posted.items()}
        ignored = values.pop(IGNORE_NAME, ()) + (() if ignore is None else (ignore,))
        background = values.pop(BACKGROUND, None)
        if background is None and len(values) > 1 and not any(0 in listed for listed in [*values.values(), ignored]):
            background = (0,)
        map_ = cls(tuple(values.items()), background, tuple(dict.fromkeys(ignored)))
        map_._refuse_impossible()
        return map_

    @classmethod
    def infer(cls, values: Iterable[int]) -> LabelMap:
        """The map that the values of a whole dataset speak for, or UnknownLabel (see the module)."""
        found = sorted(set(values))
        others = [value for value in found if value != 0]
        if len(others) <= 1 and (0 in found or others in ([1], [255])):
            return cls(((FOREGROUND, tuple(others or [1])),), (0,))
        if found[0] >= 0 and found[-1] < MOST_CLASSES and set(range(1, found[-1] + 1)) <= set(found):
            return cls(tuple((f"class_{value}", (value,)) for value in range(1, found[-1] + 1)), (0,))
        raise UnknownLabel(
            f"The masks hold the values {_shown(found)}, which are neither 0 and one other nor 0, 1, 2, ... without"
            ' gaps. Post a label map such as {"vessel": 255} that says which values are foreground.'
        )

    @property
    def names(self) -> list[str]:
        """Class names by index, background first."""
        return [BACKGROUND, *(name for name, _ in self.classes)]

    @property
    def strict(self) -> bool:
        """True when a value that is not listed is refused."""
        return self.background is not None

    @property
    def ignore_index(self) -> int | None:
        """`IGNORE` when the map has values that mean "not labelled", else None."""
        return IGNORE if self.ignore else None

    def as_dict(self) -> dict[str, int | list[int]]:
        """The JSON form that `parse` reads back."""
        named = {
            name: values
            for name, values in ((BACKGROUND, self.background), *self.classes, (IGNORE_NAME, self.ignore))
            if values
        }
        return {name: values[0] if len(values) == 1 else list(values) for name, values in named.items()}

    def index_of(self) -> dict[int, int]:
        """Class index by mask value, for the values that are listed."""
        listed = dict.fromkeys(self.background or (), 0)
        for index, (_, values) in enumerate(self.classes, start=1):
            listed |= dict.fromkeys(values, index)
        return listed | dict.fromkeys(self.ignore, IGNORE)

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


def to_index(mask: np.ndarray, label_map: LabelMap | None = None) -> tuple[np.ndarray, list[str]]:
    """Class indexes of a mask, and the class names by index, background first.

    mask       (H, W) or (D, H, W) integers, as `decode_mask` gives them; not changed
    label_map  without one, `LabelMap.infer` of this mask's own values: infer over the whole dataset where there is one
    returns    uint8 array of the same shape: 0 background, 1.. classes, `IGNORE` (255) where not labelled

    UnknownLabel, with values and counts, when the map is strict and the mask holds a value that it does not list.
    """
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
    return _looked_up(mask, [(value, index_of.get(value, 0)) for value in counts]), label_map.names


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


def _integers(name: str, given: int | list[int]) -> tuple[int, ...]:
    values = given if isinstance(given, list | tuple) else [given]
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise BadDataset(
            f'The label map gives "{name}" the values {given!r}; one integer or a list of integers is expected, such as'
            " 255."
        )
    return tuple(dict.fromkeys(values))


def _shown(values: Iterable[int]) -> str:
    values = list(values)
    return ", ".join(map(str, values[:_SHOWN])) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _counted(counts: Mapping[int, int]) -> str:
    parts = [f"value {value} in {count} pixels" for value, count in list(counts.items())[:_SHOWN]]
    return ", ".join(parts) + (f" and {len(counts) - _SHOWN} more values" if len(counts) > _SHOWN else "")
