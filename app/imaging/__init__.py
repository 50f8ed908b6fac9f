"""Decodes image bytes to arrays with geometry, within limits, and encodes them.

Pillow, tifffile, imagecodecs, nibabel and topology are imported by the functions that need them, so importing this
package costs the gateway numpy only.
"""

from app.imaging.datasets import Dataset, Pair, open_dataset
from app.imaging.decode import decode, decode_labels, decode_map, decode_mask
from app.imaging.encode import encode_nifti_gz, encode_nrrd, encode_png, encode_tiff, fitted_png, preview_png, shades
from app.imaging.formats import FORMATS, Format, sniff
from app.imaging.grids import onto
from app.imaging.header import read_header
from app.imaging.labels import IGNORE, LabelMap, to_index
from app.imaging.names import plain_name
from app.imaging.picture import Header, Limits, Picture
from app.imaging.statistics import Examination, examine

__all__ = [
    "FORMATS",
    "IGNORE",
    "Dataset",
    "Examination",
    "Format",
    "Header",
    "LabelMap",
    "Limits",
    "Pair",
    "Picture",
    "decode",
    "decode_labels",
    "decode_map",
    "decode_mask",
    "encode_nifti_gz",
    "encode_nrrd",
    "encode_png",
    "encode_tiff",
    "examine",
    "fitted_png",
    "onto",
    "open_dataset",
    "plain_name",
    "preview_png",
    "read_header",
    "shades",
    "sniff",
    "to_index",
]
