"""One writer for each image format, by another program than ours: (C, H, W) or (C, D, H, W) pixels to a file."""

from __future__ import annotations

import gzip
import io
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
import tifffile
from PIL import Image

from tests.imaging.dicom_files import dataset, slices, written, zipped


def pillow(format: str, pixels: np.ndarray) -> bytes:
    """One or three channels in the plane, by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(buffer, format)
    return buffer.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    """Any number of channels, in the plane or as named pages, by tifffile."""
    buffer = io.BytesIO()
    if pixels.ndim == 4:
        tifffile.imwrite(buffer, pixels, photometric="minisblack", metadata={"axes": "CZYX"})
    elif len(pixels) == 1:
        tifffile.imwrite(buffer, pixels[0], metadata=None)
    else:
        tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig="separate", metadata=None)
    return buffer.getvalue()


def nifti(pixels: np.ndarray) -> bytes:
    """Any number of channels, on the fifth axis, by nibabel."""
    stored = np.moveaxis(pixels, 0, -1)
    spatial = stored[..., 0].T if len(pixels) == 1 else stored.transpose(2, 1, 0, 3)[:, :, :, None]
    return nibabel.Nifti1Image(spatial, np.eye(4), dtype=pixels.dtype).to_bytes()


def dicom(pixels: np.ndarray) -> bytes:
    """One or three channels, several planes as frames, by pydicom."""
    return written(dataset(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))))


def dicom_series(pixels: np.ndarray) -> bytes:
    """One or three channels, each plane a file, the last one first, by pydicom."""
    planes = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    return zipped(slices(planes)[::-1])


def itk(suffix: str, pixels: np.ndarray) -> bytes:
    """Any number of channels, by SimpleITK."""
    image = SimpleITK.GetImageFromArray(
        pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1), isVector=len(pixels) > 1
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        SimpleITK.WriteImage(image, str(path), useCompression=True)
        return path.read_bytes()


WRITERS = {
    "png": lambda pixels: pillow("png", pixels),
    "jpeg": lambda pixels: pillow("jpeg", pixels),
    "tiff": tiff,
    "gif": lambda pixels: pillow("gif", pixels),
    "bmp": lambda pixels: pillow("bmp", pixels),
    "pnm": lambda pixels: pillow("ppm", pixels),
    "nifti": nifti,
    "nifti_gz": lambda pixels: gzip.compress(nifti(pixels)),
    "dicom": dicom,
    "dicom_series": dicom_series,
    "nrrd": lambda pixels: itk(".nrrd", pixels),
    "metaimage": lambda pixels: itk(".mha", pixels),
}
"""By name of the format."""
LOSSY = {"jpeg": 12}
"""How far a decoded value may lie from the one that was written."""


def pixels(dtype: str, dimensions: int, channels: int = 1) -> np.ndarray:
    """A slope that a lossy format keeps, with the values of the type's lower half and, where it has them, below 0."""
    shape = (channels, *(6, 16, 24)[3 - dimensions :])
    slope = np.arange(np.prod(shape[1:]), dtype=np.float64).reshape(shape[1:]) / np.prod(shape[1:])
    largest = 1.0 if np.dtype(dtype).kind == "f" else min(np.iinfo(dtype).max, 2**15) / 2
    signed = np.dtype(dtype).kind == "i"
    return np.stack([(slope - 0.5 * signed) * largest / (1 + channel) for channel in range(channels)]).astype(dtype)
