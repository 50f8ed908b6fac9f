"""Bad images over HTTP: exact status and code, nothing stored, bounded memory.

The tables of files stand in test_hostile_files.py, beside what the decoder makes of them. docs/how-to/bad-input.md
numbers the rows.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
from PIL import Image

from app.errors import Problem
from app.imaging import decode, encode_nifti_gz, encode_png, encode_tiff
from app.imaging.png import MAX_INFLATED
from app.settings import Settings
from tests.gateway import Gateway, GatewayProcess, form, told
from tests.imaging.crafted_files import chunk, grey_png, gzipped, nifti, png, tiff
from tests.imaging.dicom_files import zipped
from tests.imaging.test_dicom import HOSTILE as HOSTILE_DICOM, NOT_ONE_SERIES
from tests.imaging.test_hostile_files import (
    DAMAGED_JPEG,
    DAMAGED_NIFTI,
    DAMAGED_PNG,
    DAMAGED_TIFF,
    FOREIGN,
    LARGE,
    NOISE,
    SMALL,
    SMOOTH,
    WHOLE,
    bomb,
    saved,
    tif,
)
from tests.serving import networks

ANSWERS = {
    "UnsupportedImage": (415, "unsupported_image"),
    "UnsupportedTransferSyntax": (415, "unsupported_transfer_syntax"),
    "NoPixelData": (422, "no_pixel_data"),
    "TooManyPixels": (413, "too_many_pixels"),
    "ExpandsTooLarge": (413, "expands_too_large"),
    "CorruptImage": (422, "corrupt_image"),
    "EmptyImage": (422, "empty_image"),
    "ManyFrames": (422, "multiple_frames"),
    "UnsupportedDepth": (422, "unsupported_depth"),
    "UnsupportedDtype": (422, "unsupported_dtype"),
    "UnsupportedColor": (422, "unsupported_color"),
    "NonFinite": (422, "non_finite"),
    "BadAffine": (422, "bad_affine"),
}
"""Status and code on the wire, written down apart from app/errors.py."""


def answers(problem: type[Problem]) -> tuple[int, str]:
    return ANSWERS[problem.__name__]


def gzip_bomb(header: bytes, megabytes: int) -> bytes:
    """A header and so many MiB of zeros."""
    deflater = zlib.compressobj(9, wbits=31)
    return (
        b"".join([deflater.compress(header)] + [deflater.compress(bytes(1 << 20)) for _ in range(megabytes)])
        + deflater.flush()
    )


def pages(count: int) -> bytes:
    """A TIFF of that many pages of one pixel."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(count):
            writer.write(np.zeros((1, 1), np.uint8), metadata=None, contiguous=False)
    return file.getvalue()


def wrong_in(encoded: bytes, place: int) -> bytes:
    """One bit flipped."""
    damaged = bytearray(encoded)
    damaged[place] ^= 1
    return bytes(damaged)


VOLUME = gzipped(nifti((4, 3, 2), bytes(range(24))))
FRAMES = [Image.fromarray(SMALL), Image.fromarray(SMALL[::-1].copy())]
BOMBS = {
    "B4 1-bit PNG of 50k x 50k": (png(50_000, 50_000, depth=1), (413, "too_many_pixels")),
    "B4 PNG of 80M x 1": (png(80_000_000, 1), (413, "too_many_pixels")),
    "B5 zTXt of 200 MB": (grey_png(SMALL, before=chunk(b"zTXt", b"k\0\0" + bomb(200 << 20))), (422, "corrupt_image")),
    "B5 iTXt of 200 MB": (
        grey_png(SMALL, after=chunk(b"iTXt", b"k\0\1\0\0\0" + bomb(200 << 20))),
        (422, "corrupt_image"),
    ),
    "B5 iCCP over the limit": (
        grey_png(SMALL, before=chunk(b"iCCP", b"k\0\0" + bomb(MAX_INFLATED + (1 << 20)))),
        (422, "corrupt_image"),
    ),
    "B5 100000 chunks": (grey_png(SMALL, before=chunk(b"tEXt", b"a\0b") * 100_000), (422, "corrupt_image")),
    "B13 deflated TIFF": (tiff(53248, 53248, bomb(256 << 20), compression=8), (413, "too_many_pixels")),
    "B13 a strip that expands beyond its size": (tiff(8, 6, bomb(256 << 20), compression=8), (422, "corrupt_image")),
    "B14 20000 pages": (pages(20_000), (422, "multiple_frames")),
    "B14 tiles of 2^31": (DAMAGED_TIFF["tiles of 2^31"][0], (422, "corrupt_image")),
    "B16 a volume too large behind gzip": (gzip_bomb(nifti((1290, 1290, 1290), b""), 256), (413, "too_many_pixels")),
    "B16 data behind the last voxel": (gzip_bomb(nifti((4, 3, 2), bytes(24)), 256), (422, "corrupt_image")),
}
BAD: dict[str, tuple[bytes, tuple[int, str]]] = {
    **{f"B1, B3, B46 {name}": (content, (415, "unsupported_image")) for name, content in FOREIGN.items()},
    "B46 XML with an entity": (
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
        (415, "unsupported_image"),
    ),
    "B2 GIF that is a script": (b"GIF89a/*" + bytes(30) + b"*/=1;//", (422, "corrupt_image")),
    **{f"B4, B13, B14, B18 {name}": (content, answers(problem)) for name, (content, problem) in LARGE.items()},
    **BOMBS,
    **{
        f"B6 {name} cut in half": (content[: len(content) // 2], (422, "corrupt_image"))
        for name, content in WHOLE.items()
    },
    **{f"B6, B7 {name}": (content, (422, "corrupt_image")) for name, content in (DAMAGED_PNG | DAMAGED_JPEG).items()},
    "B8 no columns": (png(0, 5), (422, "empty_image")),
    "B8 no rows": (png(5, 0), (422, "empty_image")),
    "B9 NaN": (tif(np.array([[0, np.nan]], np.float32)), (422, "non_finite")),
    "B9 infinity": (tif(np.array([[0, -np.inf]], np.float32)), (422, "non_finite")),
    "B9 12 bits of JPEG": (
        saved(Image.fromarray(SMOOTH), "jpeg").replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc0\x00\x0b\x0c"),
        (422, "unsupported_depth"),
    ),
    "B10 CMYK JPEG": (saved(Image.new("CMYK", (8, 8)), "jpeg"), (422, "unsupported_color")),
    "B12 animated PNG": (saved(FRAMES[0], "png", save_all=True, append_images=FRAMES[1:]), (422, "multiple_frames")),
    "B12 animated GIF": (saved(FRAMES[0], "gif", save_all=True, append_images=FRAMES[1:]), (422, "multiple_frames")),
    "B12 animated WebP": (
        saved(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:]),
        (415, "unsupported_image"),
    ),
    **{f"B10, B12, B14, B15 {name}": (content, answers(problem)) for name, (content, problem) in DAMAGED_TIFF.items()},
    "B17 wrong checksum": (wrong_in(VOLUME, -8), (422, "checksum_mismatch")),
    "B17 wrong length": (wrong_in(VOLUME, -1), (422, "checksum_mismatch")),
    **{
        f"B18 {name}": (content, answers(problem))
        for name, (content, problem, _) in DAMAGED_NIFTI.items()
        if problem is not None
    },
    **{f"B19 to B23 DICOM, {name}": (make(), answers(problem)) for name, (make, problem) in HOSTILE_DICOM.items()},
    **{
        f"DICOM series with {name}": (zipped(files), (422, "bad_series")) for name, (files, _) in NOT_ONE_SERIES.items()
    },
    "B19 DICOM without a syntax": (
        bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 0),
        (415, "unsupported_transfer_syntax"),
    ),
    "a broken zip": (b"PK\3\4" + bytes(30), (422, "bad_archive_entry")),
    "B23 DICOM without its preamble": (
        struct.pack("<HH2sHI", 2, 0, b"UL", 4, 0) + bytes(200),
        (415, "unsupported_image"),
    ),
    "B21 DICOMDIR": (
        bytes(128) + b"DICM" + b"\2\0\2\0UI\x1c\x001.2.840.10008.1.3.10\0\0\0\0\0\0\0\0",
        (415, "unsupported_image"),
    ),
}
"""Row and name of each bad image, its bytes, and what it is answered wherever an image is taken."""


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """One gateway with the model `blur`."""
    gateway = serve(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("data"), min_free_bytes=0))
    gateway.register("blur", networks.blur())
    return gateway


ADDRESSES = {
    "upload": "/v1/images",
    "predict": "/v1/models/blur/predict",
    "predict and store": "/v1/models/blur/predict?store=true",
    "analyse": "/v1/analyses",
}


def send(gateway: Gateway, address: str, content: bytes, media: str = "image/png") -> httpx.Response:
    return gateway.ask("POST", ADDRESSES[address], content=content, headers={"Content-Type": media})


READ_AS_NUMBERS = {
    "B6, B7 palette missing",
    "B10, B12, B14, B15 white as zero without a white",
    "B10, B12, B14, B15 int64",
}
"""What has no colours, or too wide ones, and yet has the numbers that an analysis of a mask wants."""


@pytest.mark.parametrize("address", ADDRESSES)
def test_bad_image_gets_its_exact_error_and_stores_nothing(gateway: Gateway, address: str) -> None:
    before, wrong = gateway.count_everything(), {}
    for case, (content, expected) in BAD.items():
        if address == "analyse" and case in READ_AS_NUMBERS:
            continue
        answer = send(gateway, address, content)
        if told(answer) != expected or len(answer.json()["detail"]) < 20:
            wrong[case] = answer.json()
    assert not wrong
    assert gateway.count_everything() == before
    assert gateway.http.get("/livez").status_code == 200


def test_numbers_without_colours_are_analysed(gateway: Gateway) -> None:
    for case in READ_AS_NUMBERS:
        assert send(gateway, "analyse", BAD[case][0]).status_code == 200, case


def test_content_type_and_file_name_do_not_decide_the_format(gateway: Gateway) -> None:
    """B2, B46: what it is counts, and it is served as that."""
    for declared, content, really in (
        ("image/jpeg", WHOLE["png"], "image/png"),
        ("image/png", WHOLE["tiff"], "image/tiff"),
        ("image/tiff", WHOLE["jpeg"] + b"<html><script>", "image/jpeg"),
    ):
        image = send(gateway, "upload", content, declared).json()
        got = gateway.ask("GET", image["links"]["content"])
        assert got.headers["content-type"] == really and got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-disposition"].startswith("attachment") and got.headers[
            "content-security-policy"
        ].startswith("sandbox")
    headers, body = form(
        [('form-data; name="file"; filename="x.html"\r\nContent-Type: text/html', encode_png(NOISE[:5]))]
    )
    image = gateway.ask("POST", "/v1/images", content=body, headers=headers).json()
    assert (
        image["format"] == "png"
        and gateway.ask("GET", image["links"]["content"]).headers["content-type"] == "image/png"
    )


def test_compressed_body_is_refused(gateway: Gateway) -> None:
    """B38."""
    for encoding in ("gzip", "br", "deflate", "identity, gzip"):
        for address in ADDRESSES.values():
            answer = gateway.ask(
                "POST",
                address,
                content=WHOLE["png"],
                headers={"Content-Type": "image/png", "Content-Encoding": encoding},
            )
            inflated = encoding == "gzip" and address.startswith("/v1/")  # which these bytes are not
            refusal = (400, "invalid_request") if inflated else (415, "unsupported_media_type")
            assert told(answer) == refusal, (encoding, address)


def test_bit_depth_and_exif_orientation_are_kept_over_http(gateway: Gateway) -> None:
    """B9, B11: 16 bits and floats are kept; what a camera says about up is obeyed, and the answer tells the shape."""
    deep = (np.add.outer(np.arange(40), np.arange(50)) * 700).astype(np.uint16)
    for pixels, content, media in (
        (deep, encode_tiff(deep), "image/tiff"),
        (deep / np.float32(65535), encode_tiff(deep / np.float32(65535)), "image/tiff"),
        (np.stack([deep] * 3), encode_png(np.stack([deep] * 3)), "image/png"),
    ):
        image = send(gateway, "upload", content, media).json()
        assert (image["dtype"], image["shape"]) == (pixels.dtype.name, [40, 50])
        np.testing.assert_array_equal(
            decode(gateway.ask("GET", image["links"]["content"]).content, gateway.settings).pixels.squeeze(), pixels
        )
    tag = Image.Exif()
    tag[0x0112] = 6
    assert send(gateway, "upload", saved(Image.fromarray(SMOOTH), "jpeg", exif=tag), "image/jpeg").json()["shape"] == [
        60,
        40,
    ]


def test_one_pixel_image_is_stored_but_below_the_model_minimum(gateway: Gateway) -> None:
    """B8."""
    assert send(gateway, "upload", encode_png(np.ones((1, 1), np.uint8))).json()["shape"] == [1, 1]
    assert send(gateway, "predict", encode_png(np.ones((1, 9), np.uint8))).status_code == 200
    gateway.register("coarse", networks.blur(), multiple=16)
    answer = gateway.ask(
        "POST", "/v1/models/coarse/predict", content=encode_png(NOISE[:15]), headers={"Content-Type": "image/png"}
    )
    assert told(answer) == (422, "image_too_small") and "16 x 16" in answer.json()["detail"]


def test_flipped_bits_get_a_documented_answer(gateway: Gateway) -> None:
    """B7, through the children that decode."""
    generator, seen = np.random.default_rng(3), set()
    for content in WHOLE.values():
        for _ in range(12):
            place = int(generator.integers(len(content)))
            damaged = (
                content[:place] + bytes([content[place] ^ (1 << int(generator.integers(8)))]) + content[place + 1 :]
            )
            answer = send(gateway, "predict", damaged)
            seen.add(answer.status_code)
            assert answer.status_code == 200 or told(answer)[0] in (413, 415, 422)
    assert 422 in seen


MASKS = {
    "of another size": (encode_png(np.zeros((24, 31), np.uint8)), (422, "mask_mismatch")),
    "with a label nobody named": (encode_png(np.full((24, 32), 7, np.uint8)), (422, "unknown_label")),
    "with fractions": (tif(np.full((24, 32), 0.5, np.float32)), (422, "mask_mismatch")),
    "in colours": (encode_png(np.stack([NOISE, NOISE, NOISE[::-1]])), (422, "mask_mismatch")),
    "of complex numbers": (tif(np.zeros((24, 32), np.complex64)), (422, "unsupported_dtype")),
    "without rows": (png(32, 0), (422, "empty_image")),
    "of NaN": (tif(np.full((24, 32), np.nan, np.float32)), (422, "non_finite")),
    "of two pages": (DAMAGED_TIFF["two pages"][0], (422, "multiple_frames")),
    "that is a volume": (encode_nifti_gz(np.zeros((2, 24, 32), np.uint8)), (422, "mask_mismatch")),
    "that is a text": (b"hello", (415, "unsupported_image")),
}


def test_a_mask_that_does_not_fit_its_image_is_refused(gateway: Gateway) -> None:
    """B26, as the reference of a stored prediction; tests/api/test_datasets.py has those of a dataset."""
    stored = gateway.ask(
        "POST",
        ADDRESSES["predict and store"],
        content=WHOLE["png"],
        headers={"Content-Type": "image/png", "Accept": "application/json"},
    ).json()
    answers = {
        case: gateway.ask("PUT", stored["links"]["reference"], content=content, headers={"Content-Type": "image/png"})
        for case, (content, _) in MASKS.items()
    }
    assert {case: told(answer) for case, answer in answers.items()} == {
        case: expected for case, (_, expected) in MASKS.items()
    }
    detail = answers["of another size"].json()["detail"]
    assert "24 x 31" in detail and "24 x 32" in detail
    assert gateway.ask("GET", stored["links"]["self"]).json() == stored


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip(
            "peak memory of another process is read from Linux's /proc/PID/clear_refs, which cannot be written here"
        )
    folder = tmp_path_factory.mktemp("watched")
    settings = Settings(_env_file=None, data_dir=folder / "data", min_free_bytes=0, open=True)
    watched = GatewayProcess(settings, folder / "gateway.log")
    watched.start()
    yield watched
    watched.close()


@pytest.mark.parametrize("kind", BOMBS)
def test_decompression_bomb_uses_bounded_memory(watched: GatewayProcess, kind: str) -> None:
    """+8 MB for an upload of any size, +16 MB for what a small PNG may expand to without a child."""
    content, expected = BOMBS[kind]
    for _ in range(2):  # buffers that stay are part of the process
        watched.http.post("/v1/images", content=content, headers={"Content-Type": "image/png"})
    watched.forget_peak()
    before = watched.resident_bytes()
    assert told(watched.http.post("/v1/images", content=content, headers={"Content-Type": "image/png"})) == expected
    assert (watched.peak_bytes() - before) / 2**20 < 16


def test_large_upload_uses_eight_megabytes(watched: GatewayProcess) -> None:
    def pieces(megabytes: int) -> Iterator[bytes]:
        yield png(20_000, 20_000)
        for _ in range(megabytes):
            yield bytes(1 << 20)

    def upload(megabytes: int) -> httpx.Response:
        return watched.http.post("/v1/images", content=pieces(megabytes), headers={"Content-Type": "image/png"})

    upload(16)
    watched.forget_peak()
    before = watched.resident_bytes()
    assert told(upload(200)) == (413, "too_many_pixels")
    assert (watched.peak_bytes() - before) / 2**20 < 8


def test_text_chunk_of_64_mb_in_an_image_is_not_held_in_memory(watched: GatewayProcess) -> None:
    content = grey_png(SMALL, before=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(64 << 20), 0)))
    watched.forget_peak()
    before = watched.resident_bytes()
    assert told(watched.http.post("/v1/images", content=content, headers={"Content-Type": "image/png"})) == (
        422,
        "corrupt_image",
    )
    assert (watched.peak_bytes() - before) / 2**20 < 16
