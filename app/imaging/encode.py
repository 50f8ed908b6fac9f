"""Pixels to bytes: PNG, TIFF and NIfTI answers, and the preview that a page shows.

PNG is written by imagecodecs' libpng with the Up filter and run-length matching, which suits masks: a 960 x 999 vessel
mask takes 1.4 ms and 18 kB, against 7.0 ms and 33 kB by Pillow at the same level; 512 x 512 electron microscopy 2.0 ms
against 9.6 ms and 4 % more bytes (one thread, minimum of 9; `benchmarks/` has the serving path whole).
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence

import numpy as np

from app.errors import Invalid, UnsupportedDtype
from app.imaging.picture import Forms, Picture

CONTRAST_PERCENT = (0.5, 99.5)
"""The percentiles that a preview shows as black and white, so that one hot pixel does not darken all others."""
_SAMPLE = 1_000_000  # pixels that the percentiles are taken from


def encode_png(pixels: np.ndarray, level: int = 1) -> bytes:
    """A PNG of (H, W), (1, H, W) or (3, H, W) uint8, uint16 or bool pixels; bool becomes 0 and 255.

    `level` is zlib's, 0 to 9.
    """
    import imagecodecs

    if pixels.dtype == bool:
        pixels = pixels.view(np.uint8) * np.uint8(255)
    if pixels.dtype not in (np.uint8, np.uint16) or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and len(pixels) in (1, 3))
    ):
        raise UnsupportedDtype(
            f"PNG holds one or three channels of uint8 or uint16; these pixels are {pixels.dtype} of shape"
            f" {pixels.shape}. Ask for TIFF or NIfTI."
        )
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    pixels = (
        np.ascontiguousarray(pixels).reshape(-1).reshape(pixels.shape)
    )  # imagecodecs refuses odd strides, which numpy allows on sides of length 1
    png = imagecodecs.PNG
    return bytes(imagecodecs.png_encode(pixels, level=level, filter=png.FILTER.UP, strategy=png.STRATEGY.RLE))


def encode_tiff(pixels: np.ndarray) -> bytes:
    """A deflated TIFF of (H, W) or (C, H, W) pixels in their own dtype; three uint8 or uint16 channels are RGB."""
    import tifffile

    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    rgb = pixels.ndim == 3 and len(pixels) == 3 and pixels.dtype in (np.uint8, np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="rgb" if rgb else "minisblack",
        compression="zlib",
        compressionargs={"level": 1},
        predictor=pixels.dtype.kind != "b",
        metadata=None,
        software=None,
        planarconfig="separate" if pixels.ndim == 3 else None,
    )
    return buffer.getvalue()


def encode_nifti_gz(
    pixels: np.ndarray, affine: np.ndarray | None = None, *, forms: Forms | None = None, level: int = 1
) -> bytes:
    """A .nii.gz of (H, W), (D, H, W) or (C, D, H, W) pixels; the same array and affine give the same bytes.

    `affine` (4, 4) maps (column, row, plane) to millimetres, as `Picture.affine`; without it pixels are 1 mm cubes.
    `forms` are the two places of the scan, written with their codes in place of the affine.
    Channels go on NIfTI's fifth axis, which `decode` reads back. bool becomes uint8.
    """
    import nibabel

    pixels = pixels.view(np.uint8) if pixels.dtype == bool else pixels
    stored = pixels.T if pixels.ndim < 4 else np.moveaxis(pixels, 0, -1).transpose(2, 1, 0, 3)[:, :, :, None, :]
    image = nibabel.Nifti1Image(stored, np.eye(4) if affine is None else affine, dtype=pixels.dtype)
    image.header.set_xyzt_units("mm")
    if forms is not None:
        zooms = image.header.get_zooms()
        image.set_qform(np.array(forms.qform) if forms.qform_code else None, forms.qform_code)
        image.set_sform(np.array(forms.sform) if forms.sform_code else None, forms.sform_code)
        image.header.set_zooms(zooms)
    if pixels.ndim == 4:
        image.header.set_intent("vector")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=level, mtime=0) as stream:
        image.to_stream(stream)  # slice by slice, so that a volume is not held twice
    return packed.getvalue()


def encode_nrrd(
    pixels: np.ndarray,
    affine: np.ndarray | None = None,
    *,
    forms: Forms | None = None,
    segments: Sequence[str] = (),
    compressed: bool = True,
) -> bytes:
    """A .nrrd of (H, W), (D, H, W) or (C, D, H, W) pixels, columns fastest, in the coordinates of DICOM (left, back,
    up).

    affine    as for `encode_nifti_gz`; without it an image states no place and a volume has voxels of 1 mm
    forms     of a scan; where neither of them states a place, the file has pixel sizes only
    segments  names of the values 1, 2, ...: then it is a .seg.nrrd of 3D Slicer
    Written here and not by pynrrd, which puts the time of day into every file.
    """
    pixels = pixels.view(np.uint8) if pixels.dtype == bool else pixels
    pixels = pixels[None] if pixels.ndim == 2 and affine is not None else pixels
    channels, spatial = max(0, pixels.ndim - 3), min(3, pixels.ndim)
    kind = {"float32": "float", "float64": "double"}.get(pixels.dtype.name, pixels.dtype.name)
    lines = ["NRRD0004", f"type: {kind}", f"dimension: {pixels.ndim}"]
    placed = np.diag([-1.0, -1.0, 1.0, 1.0]) @ (np.eye(4) if affine is None else affine)
    if forms is not None and not (forms.sform_code or forms.qform_code):
        sizes = [f"{size:.17g}" for size in np.linalg.norm(placed[:3, :spatial], axis=0)]
        lines += [f"spacings: {' '.join([*sizes, *['nan'] * channels])}"]
    elif spatial == 3:
        vectors = [f"({','.join(f'{step:.17g}' for step in placed[:3, axis])})" for axis in range(3)]
        lines += ["space: left-posterior-superior", f"space directions: {' '.join([*vectors, *['none'] * channels])}"]
        lines += [f"space origin: ({','.join(f'{place:.17g}' for place in placed[:3, 3])})"]
    if spatial == 3:
        lines += [f"kinds: {' '.join(['domain'] * 3 + ['list'] * channels)}"]
    sides = " ".join(map(str, pixels.shape[::-1]))
    lines += [f"sizes: {sides}", f"encoding: {'gzip' if compressed else 'raw'}", "endian: little"]
    for number, name in enumerate(segments):
        facts = {"ID": f"Segment_{number + 1}", "Name": name, "LabelValue": number + 1, "Layer": 0}
        lines += [f"Segment{number}_{key}:={' '.join(str(value).split())}" for key, value in facts.items()]
    content = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    return "\n".join([*lines, "", ""]).encode() + (gzip.compress(content, 1, mtime=0) if compressed else content)


def encode_channels(channels: list[Picture]) -> bytes:
    """One file of several one-channel pictures of one shape: TIFF in the plane, .nii.gz in space."""
    pixels = np.concatenate([picture.pixels for picture in channels])
    if channels[0].is_volume:
        return encode_nifti_gz(pixels, channels[0].affine, forms=channels[0].forms)
    return encode_tiff(pixels)


def preview_png(picture: Picture, *, plane: int | None = None, max_side: int = 1024) -> bytes:
    """An 8-bit PNG to look at: one plane (the middle one unless `plane` is given), at most `max_side` pixels a side.

    uint8 is shown as it is; other depths are stretched between the `CONTRAST_PERCENT` percentiles of what is shown.
    Three channels are RGB, otherwise the first is shown.
    """
    pixels = _plane(picture, plane)
    pixels = pixels if len(pixels) == 3 else pixels[:1]
    if pixels.dtype != np.uint8:
        pixels = _stretched(pixels)
    return encode_png(_shrunk(pixels, max_side))


def shades(picture: Picture) -> np.ndarray:
    """(C, D, H, W) or (C, H, W) uint8, one channel or three, stretched as `preview_png` does but over the whole image,
    so that the planes of a volume are shown alike.
    """
    pixels = picture.pixels if picture.channels == 3 else picture.pixels[:1]
    return pixels if pixels.dtype == np.uint8 else _stretched(pixels)


def fitted_png(pixels: np.ndarray, rows: int, columns: int) -> bytes:
    """(C, h, w) uint8 as a PNG of that many rows and columns, so that voxels that are no cubes keep their shape."""
    from PIL import Image

    if pixels.shape[1:] == (rows, columns):
        return encode_png(pixels)
    channels = [Image.fromarray(channel).resize((columns, rows), Image.Resampling.BILINEAR) for channel in pixels]
    return encode_png(np.stack([np.asarray(channel) for channel in channels]))


def _plane(picture: Picture, plane: int | None) -> np.ndarray:
    wanted = picture.planes // 2 if plane is None else plane
    if not 0 <= wanted < picture.planes:
        raise Invalid(
            f"Plane {wanted} is asked for; this image has planes 0 to {picture.planes - 1}.",
            errors=[{"pointer": "/plane", "detail": f"0 to {picture.planes - 1}"}],
        )
    return picture.pixels[:, wanted] if picture.is_volume else picture.pixels


def _stretched(pixels: np.ndarray) -> np.ndarray:
    low, high = np.percentile(pixels.reshape(-1)[:: max(1, pixels.size // _SAMPLE)], CONTRAST_PERCENT)
    if high <= low:
        low, high = float(pixels.min()), float(pixels.max())
    scale = 255 / (high - low) if high > low else 0.0
    return np.clip((pixels - np.float32(low)) * np.float32(scale), 0, 255).astype(np.uint8)


def _shrunk(pixels: np.ndarray, max_side: int) -> np.ndarray:
    """(C, h, w) uint8, area-averaged so that thin vessels fade rather than break."""
    height, width = pixels.shape[1:]
    if max(height, width) <= max_side:
        return pixels
    from PIL import Image

    factor = max_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.stack([np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BOX)) for channel in pixels])
