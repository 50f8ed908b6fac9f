"""Which page of a TIFF is which plane and channel, and how large pixels are.

Metadata tell: OME-XML and the `ImageJ=` text in the first page's description, tifffile's JSON there, resolution tags.
Pages without metadata are planes. A series in time is refused: one image per file.
Sources: OME-TIFF specification 6.2 (DimensionOrder, TiffData); ImageJ 1.54 (ij.io.TiffEncoder, ij.io.FileInfo).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import CorruptImage, ManyFrames

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

MOST_PAGES = 4096
"""Pages of one file: planes times channels."""
MOST_METADATA = 16 * 1024 * 1024
"""Characters of OME-XML: 4096 planes described at length take 2 million."""
FINEST_PRINT_MM = 0.02
"""Resolution tags are believed where pixels are smaller: 72, 300 and 1200 dots an inch describe paper and screens."""
_MM = {"nm": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3}
_MM |= {"mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4, "in": 25.4, "å": 1e-7}
_MM_OF_TAG = {2: 25.4, 3: 10.0}  # ResolutionUnit: inch, centimetre
Spacing = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Layout:
    """Where the planes of an image are.

    pages    for each channel the page of each plane, as indexes; those beyond the last page follow the first one's
             pixels without directories of their own (ImageJ writes large stacks so)
    spacing_mm  of planes, rows and columns, each None where it is not stated
    """

    pages: tuple[tuple[int, ...], ...]
    spacing_mm: Spacing

    @property
    def planes(self) -> int:
        """Planes of each channel."""
        return len(self.pages[0])


def layout_of(pages: Sequence[Any]) -> Layout:
    """The layout of a file from its pages (`tifffile.TiffPage`), the first directory first.

    Reduced copies and thumbnails are left out. Raises ManyFrames for a series in time, several images and pages that
    differ; CorruptImage for metadata that contradict the pages.
    """
    first, text = pages[0], pages[0].description
    if "<OME" in text[:1000]:
        return _of_ome(text, pages)
    if text.startswith("ImageJ="):
        return _of_imagej(text, first, len(pages))
    alike = _alike(pages)
    sizes = _of_tifffile(text, first) or {}
    order = "".join(reversed(sizes))
    if math.prod(sizes.values()) != len(alike) and not (len(alike) == 1 and math.prod(sizes.values()) > 1):
        order, sizes = "Z", {"Z": len(alike)}
    return Layout(_sequence(order, sizes, alike), (None, *_printed(first)))


def _alike(pages: Sequence[Any]) -> list[int]:
    """The pages that are planes; copies of another size are not."""
    whole = [number for number, page in enumerate(pages) if number == 0 or not int(page.subfiletype) & 5]
    kinds = [_kind(pages[number]) for number in whole]
    others = [pages[number] for number, kind in zip(whole, kinds, strict=True) if kind != kinds[0]]
    if not others:
        return whole
    first = pages[0]
    smaller = all(page.imagelength < first.imagelength and page.imagewidth < first.imagewidth for page in others)
    if len(others) == len(whole) - 1 and smaller:
        return [0]
    sizes = ", ".join(dict.fromkeys(f"{page.imagelength} x {page.imagewidth}" for page in (first, *others[:4])))
    raise ManyFrames(
        f"The TIFF holds {len(whole)} pages that differ in size or type ({sizes}); planes of a volume are alike. Send"
        " one image per file."
    )


def _kind(page: Any) -> tuple[Any, ...]:
    return page.imagelength, page.imagewidth, page.samplesperpixel, str(page.dtype)


def _sequence(order: str, sizes: dict[str, int], numbers: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """Pages that follow each other with the axes of `order`, fastest first; `numbers` are those that exist."""
    found = {}
    for at, place in enumerate(_places(order, sizes)):
        found[place] = numbers[at] if at < len(numbers) else at
    return _table(found, sizes)


def _places(order: str, sizes: dict[str, int]) -> Iterator[tuple[int, int]]:
    """(channel, plane) of each page in its order; refuses a series in time and more pages than are read."""
    if sizes.get("T", 1) > 1:
        raise ManyFrames(
            f"The TIFF holds a series of {sizes['T']} times; one image or volume is read. Send one file for each time."
        )
    total = math.prod(sizes.values())
    if not 0 < total <= MOST_PAGES:
        raise ManyFrames(f"The TIFF states {total} planes and channels; 1 to {MOST_PAGES} are read. Send a part of it.")
    for number in range(total):
        yield _place(number, order, sizes)


def _place(number: int, order: str, sizes: dict[str, int]) -> tuple[int, int]:
    place = {}
    for axis in order:
        number, place[axis] = divmod(number, sizes[axis])
    return place.get("C", 0), place.get("Z", 0)


def _table(found: dict[tuple[int, int], int], sizes: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    channels, planes = sizes.get("C", 1), sizes.get("Z", 1)
    if len(found) < channels * planes:
        raise CorruptImage(
            f"The TIFF's metadata place {len(found)} of {channels} channels x {planes} planes. Save the image again."
        )
    return tuple(tuple(found[channel, plane] for plane in range(planes)) for channel in range(channels))


def _of_imagej(text: str, first: Any, count: int) -> Layout:
    stated = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    sizes = {
        axis: _whole(stated.get(name, "1")) for axis, name in zip("CZT", ("channels", "slices", "frames"), strict=True)
    }
    images, samples = _whole(stated.get("images", "1")), int(first.samplesperpixel)
    if sizes["C"] == samples > 1:  # its channels are the samples of each page
        sizes["C"] = 1
    if math.prod(sizes.values()) == 1 and images > 1:
        sizes["Z"] = images
    total = math.prod(sizes.values())
    if total != count and not (count == 1 < total):
        raise CorruptImage(
            f"The TIFF's ImageJ metadata state {total} planes, channels and times, and it holds {count} pages. Save the"
            " image again."
        )
    size = _MM.get(stated.get("unit", "").strip().replace("\\u00B5", "µ").lower())
    rows, columns = _pixels_per_unit(first, 283), _pixels_per_unit(first, 282)
    depth = _number(stated.get("spacing", "1"))
    spacing: Spacing = (None, *_printed(first))
    if size is not None and rows and columns:
        spacing = (abs(depth) * size if depth else None, size / rows, size / columns)
    return Layout(_sequence("CZT", sizes), spacing)


def _of_tifffile(text: str, first: Any) -> dict[str, int] | None:
    """Sizes of the axes that are not in a page, slowest first, where tifffile wrote their names."""
    if not text.startswith('{"shape":'):
        return None
    try:
        stated = json.loads(text)
        shape, axes = [int(side) for side in stated["shape"]], str(stated.get("axes", ""))
    except (ValueError, TypeError, KeyError):
        return None
    inside = int(first.samplesperpixel) * first.imagelength * first.imagewidth
    total = math.prod(shape) // max(1, inside)
    while shape and math.prod(shape) > total:
        shape.pop()
    named = axes[: len(shape)]
    if not set(named) <= set("TZC") or len(set(named)) < len(shape):
        return {"Z": total}
    return dict(zip(named, shape, strict=True))


def _of_ome(text: str, pages: Sequence[Any]) -> Layout:
    from xml.etree import ElementTree as ET  # only decoders need it

    if len(text) > MOST_METADATA or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CorruptImage(f"The TIFF's OME-XML is longer than {MOST_METADATA} characters or declares entities.")
    try:
        images = [each for each in ET.fromstring(text) if _name(each) in ("Image", "BinaryOnly")]
        if not images or _name(images[0]) == "BinaryOnly":
            raise ManyFrames("The OME-TIFF is a part of several files. Save it as one file.")
        every = [next(each for each in image if _name(each) == "Pixels") for image in images]
        return _of_pixels(every, pages)
    except (ET.ParseError, StopIteration, KeyError, ValueError, IndexError) as error:
        raise CorruptImage(f"The TIFF's OME-XML cannot be read ({error!r:.80}). Save the image again.") from error


def _of_pixels(every: Sequence[ET.Element], pages: Sequence[Any]) -> Layout:
    pixels, *others = every
    side = int(pixels.attrib["SizeX"])
    if any(int(other.attrib["SizeX"]) >= side for other in others):
        raise ManyFrames(f"The OME-TIFF holds {len(every)} images. Send one image per file.")
    order = pixels.attrib["DimensionOrder"].removeprefix("XY")
    if sorted(order) != ["C", "T", "Z"]:
        raise ValueError(order)
    samples = max([int(each.get("SamplesPerPixel", 1)) for each in pixels if _name(each) == "Channel"], default=1)
    sizes = {axis: int(pixels.attrib[f"Size{axis}"]) for axis in "CZT"}
    sizes["C"] //= max(1, samples)
    found, places = {}, list(_places(order, sizes))
    numbers = {place: number for number, place in enumerate(places)}
    entries = [each for each in pixels if _name(each) == "TiffData"] or [pixels.makeelement("TiffData", {})]
    if len({uuid.text for entry in entries for uuid in entry if _name(uuid) == "UUID"}) > 1:
        raise ManyFrames("The OME-TIFF is spread over several files. Save it as one file.")
    for entry in entries:
        start, page = numbers[int(entry.get("FirstC", 0)), int(entry.get("FirstZ", 0))], int(entry.get("IFD", 0))
        count = int(entry.get("PlaneCount", 1 if "IFD" in entry.attrib else len(places)))
        for step in range(max(0, min(count, len(places) - start))):
            if not 0 <= page + step < len(pages):
                raise CorruptImage(
                    f"The OME-XML places a plane on page {page + step}; the TIFF has {len(pages)}. Send the whole file."
                )
            found[places[start + step]] = page + step
    table = _table(found, sizes)
    if len({_kind(pages[number]) for channel in table for number in channel}) > 1:
        raise CorruptImage("The pages that the OME-XML calls planes of one image differ. Save the image again.")
    depth, rows, columns = (_length(pixels, axis) for axis in "ZYX")
    return Layout(table, (depth, rows, columns))


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _length(pixels: ET.Element, axis: str) -> float | None:
    """PhysicalSize in mm; its unit is the micrometre unless another is named."""
    size = _number(pixels.get(f"PhysicalSize{axis}", ""))
    unit = _MM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").lower())
    return size * unit if size and unit else None


def _printed(page: Any) -> tuple[float | None, float | None]:
    """Height and width of a pixel by the resolution tags, where these cannot be about paper."""
    unit = _MM_OF_TAG.get(int(page.tags.valueof(296, default=2) or 0))
    rows, columns = _pixels_per_unit(page, 283), _pixels_per_unit(page, 282)
    if unit is None or not rows or not columns or max(unit / rows, unit / columns) >= FINEST_PRINT_MM:
        return None, None
    return unit / rows, unit / columns


def _pixels_per_unit(page: Any, tag: int) -> float | None:
    value = page.tags.valueof(tag)
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return _number(str(value[0] / value[1]))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number != 0 else None


def _whole(text: str) -> int:
    number = _number(text)
    if number is None or number < 1 or number > 2**31:
        raise CorruptImage(f"The TIFF's ImageJ metadata state {text[:20]!r} where a count is. Save the image again.")
    return int(number)
