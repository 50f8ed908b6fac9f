"""Decodes compressed DICOM frames with imagecodecs, as a plugin of pydicom's decoders.

imagecodecs is there already, for TIFF, and is under BSD; of pydicom's own plugins pylibjpeg-libjpeg is under GPL and
Pillow knows neither lossless JPEG nor more than 8 bits of colour. A frame of another size than its file is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.imaging.dicom.files import HTJ2K, JPEG, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE, pydicom

PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEG_LOSSLESS, *JPEG_LS, *JPEG_2000, *HTJ2K), ("imagecodecs",))
"""Read by pydicom (see its guide to decoder plugins)."""


def is_available(uid: str) -> bool:
    """Whether frames of this transfer syntax are decoded here; asked by pydicom."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: Any) -> bytearray:
    """One frame, its samples in the colour space that the file names; called by pydicom."""
    import imagecodecs

    syntax, samples = str(runner.transfer_syntax), runner.samples_per_pixel
    source = bytes(source)
    if syntax in JPEG:
        # Both sides in one colour space: pydicom converts, by what the file says.
        colours = None if samples == 1 else "YCBCR"
        frame = imagecodecs.jpeg8_decode(source, colorspace=colours, outcolorspace=colours)
    elif syntax in JPEG_LOSSLESS:
        frame = imagecodecs.ljpeg_decode(source) if samples == 1 else imagecodecs.jpegsof3_decode(source)
    elif syntax in JPEG_LS:
        frame = imagecodecs.jpegls_decode(source)
    elif syntax in HTJ2K:
        frame = imagecodecs.htj2k_decode(source)
    else:
        frame = imagecodecs.jpeg2k_decode(source)
    wanted = (runner.rows, runner.columns, samples)[: 3 if samples > 1 else 2]
    if frame.shape != wanted:
        raise ValueError(f"a frame of {frame.shape} in a file of {wanted}")
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # the codec has undone it
        runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return bytearray(np.ascontiguousarray(frame).tobytes())  # pydicom corrects signs in place


def decoder_for(syntax: str) -> tuple[Any, str]:
    """pydicom's decoder of a transfer syntax, and the name of the plugin that it is to use."""
    decoder = pydicom().pixels.get_decoder(syntax)
    if syntax in DECODER_DEPENDENCIES:
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, decode_frame.__name__))
        return decoder, PLUGIN
    return decoder, "pydicom" if syntax == RLE else ""
