"""Decoding in child processes: same results, resource limits, clean shutdown."""

from __future__ import annotations

import gzip
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from app.errors import CorruptImage, ExpandsTooLarge, Problem, TooManyPixels, Unavailable, UnsupportedImage
from app.imaging import decode, decode_mask, encode_png, read_header
from app.imaging.decoders import SMALL, Decoders
from app.settings import Settings
from tests.services import wait_for

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def settings_here() -> Settings:
    return Settings(_env_file=None, decode_children=1, max_voxels=40_000_000)


@pytest.fixture(scope="module")
def children(settings_here: Settings) -> Any:
    """One warm child for all tests that leave it well."""
    decoders = Decoders(settings_here)
    yield decoders
    decoders.close()


@pytest.fixture
def own(settings_here: Settings) -> Any:
    """Decoders of one test, with settings of its own."""
    made: list[Decoders] = []

    def make(**changes: Any) -> Decoders:
        made.append(Decoders(settings_here.model_copy(update=changes)))
        return made[-1]

    yield make
    for decoders in made:
        decoders.close()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def nifti(pixels: np.ndarray) -> bytes:
    image = nibabel.Nifti1Image(pixels, np.diag([0.5, 0.6, 0.7, 1]) + np.array([[0, 0, 0, -3.0]] * 3 + [[0, 0, 0, 0]]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


LARGE = encode_png(np.tile(np.arange(250, dtype=np.uint8), (2001, 8)))
"""A PNG just above `SMALL`."""
IMAGES = {
    "tiff uint8": tiff(RNG.integers(0, 255, (20, 30), np.uint8)),
    "tiff uint16": tiff(RNG.integers(0, 65535, (20, 30), np.uint16), compression="zlib"),
    "tiff float32": tiff(RNG.random((20, 30), np.float32)),
    "tiff rgb": tiff(RNG.integers(0, 255, (20, 30, 3), np.uint8), photometric="rgb"),
    "nifti int16": nifti(RNG.integers(-900, 900, (5, 6, 7)).astype(np.int16)),
    "nifti float64 gz": gzip.compress(nifti(RNG.random((5, 6, 7)))),
    "large png": LARGE,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_child_reads_the_same_pixels_as_this_process(children: Decoders, settings_here: Settings, kind: str) -> None:
    ours, theirs = decode(IMAGES[kind], settings_here), children.decode(IMAGES[kind])
    assert (
        np.array_equal(ours.pixels, theirs.pixels)
        and ours.pixels.dtype == theirs.pixels.dtype
        and theirs.pixels.flags.c_contiguous
    )
    assert (ours.format, ours.spacing_mm) == (theirs.format, theirs.spacing_mm)
    assert (ours.affine is None and theirs.affine is None) or np.array_equal(ours.affine, theirs.affine)
    one, other = read_header(IMAGES[kind], settings_here), children.read_header(IMAGES[kind])
    assert (one.format, one.shape, one.channels, one.dtype, one.spacing_mm, one.orientation) == (
        other.format,
        other.shape,
        other.channels,
        other.dtype,
        other.spacing_mm,
        other.orientation,
    )
    assert children.alive


def test_a_child_reads_masks(children: Decoders, settings_here: Settings) -> None:
    for mask in (
        tiff(RNG.integers(0, 3, (20, 30), np.uint8)),
        nifti(RNG.integers(-2, 70_000, (5, 6, 7)).astype(np.int32)),
    ):
        ours, theirs = decode_mask(mask, settings_here), children.decode_mask(mask)
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype


BROKEN = {
    "cut short": IMAGES["tiff uint16"][:-100],
    "no image": b"hello",
    "nan": tiff(np.array([[np.nan, 1]], np.float32)),
    "complex": tiff(np.ones((4, 4), np.complex64)),
    "gzip": IMAGES["nifti float64 gz"][:-5] + b"12345",
    "too many voxels": (
        nifti(np.zeros((2, 2, 2), np.uint8))[:42]
        + np.array([3000, 3000, 3000], "<i2").tobytes()
        + nifti(np.zeros((2, 2, 2), np.uint8))[48:]
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_child_refuses_with_the_same_message_as_this_process(
    children: Decoders, settings_here: Settings, kind: str
) -> None:
    with pytest.raises(Problem) as ours:
        decode(BROKEN[kind], settings_here)
    with pytest.raises(type(ours.value)) as theirs:
        children.decode(BROKEN[kind])
    assert (ours.value.detail, ours.value.errors) == (theirs.value.detail, theirs.value.errors)
    assert children.decode(IMAGES["tiff uint8"]).shape == (20, 30), "the same child goes on"


def test_every_kind_of_source_is_read_from_its_start(children: Decoders, tmp_path: Path) -> None:
    content = IMAGES["tiff uint16"]
    path = tmp_path / "image.tif"
    path.write_bytes(content)
    with (
        path.open("rb") as file,
        tempfile.TemporaryFile() as nameless,
        tempfile.SpooledTemporaryFile(max_size=10**6) as spooled,
    ):
        for stream in (nameless, spooled):
            stream.write(content)
        nameless.flush()
        for source in (
            content,
            bytearray(content),
            memoryview(content),
            path,
            io.BytesIO(content),
            file,
            nameless,
            spooled,
        ):
            assert children.decode(source).pixels.sum() == tifffile.imread(path).sum(), type(source)


def test_small_common_files_need_no_child(own: Any) -> None:
    decoders = own()
    jpeg = io.BytesIO()
    Pillow.fromarray(np.zeros((20, 30), np.uint8)).save(jpeg, "jpeg")
    assert decoders.decode(encode_png(np.zeros((20, 30), np.uint8))).shape == (20, 30)
    assert decoders.decode(jpeg).shape == decoders.read_header(jpeg).shape == (20, 30)
    assert decoders.alive == [] and SMALL <= 2001 * 2000
    decoders.decode(LARGE)
    assert len(decoders.alive) == 1


def test_pixels_from_a_child_are_owned_by_the_caller(children: Decoders) -> None:
    first, second = children.decode(IMAGES["tiff uint8"]).pixels, children.decode(IMAGES["tiff uint8"]).pixels
    first[:] = 7  # writable, as decoded here
    assert (first == 7).all() and not (second == 7).all()


def test_image_over_the_child_memory_limit_is_refused_and_the_next_is_read(own: Any) -> None:
    decoders = own(decode_memory_bytes=400 * 2**20, max_voxels=10**8)
    assert decoders.decode(IMAGES["tiff uint8"]).shape == (20, 30)
    with pytest.raises(ExpandsTooLarge, match="bytes of memory"):
        decoders.decode(gzip.compress(nifti(np.zeros((39, 1000, 1000), np.float64)), 1))
    assert decoders.decode(IMAGES["tiff uint8"]).shape == (20, 30)


def asked(decoders: Decoders) -> tuple[threading.Thread, list[Any]]:
    """A thread that asks for an image, and what it was told."""
    told: list[Any] = []

    def ask() -> None:
        try:
            told.append(decoders.decode(IMAGES["tiff uint8"]))
        except Problem as problem:
            told.append(problem)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, told


@pytest.mark.parametrize(
    ("ended_by", "problem"),
    [(signal.SIGSEGV, CorruptImage), (signal.SIGXCPU, ExpandsTooLarge), (None, ExpandsTooLarge)],
    ids=["crash", "processor", "time"],
)
def test_crashed_child_is_replaced(own: Any, ended_by: signal.Signals | None, problem: type[Problem]) -> None:
    decoders = own(decode_cpu_s=1)
    decoders.decode(IMAGES["tiff uint8"])
    (child,) = decoders.alive
    os.kill(child, signal.SIGSTOP)  # it will not answer
    thread, told = asked(decoders)
    if ended_by:
        wait_for(lambda: not decoders._free.qsize(), what="the question")
        os.kill(child, ended_by)
        os.kill(child, signal.SIGCONT)
    thread.join(20)
    assert type(told[0]) is problem
    assert decoders.decode(IMAGES["tiff uint8"]).shape == (20, 30) and child not in decoders.alive


def test_killed_idle_child_is_replaced_without_failing_the_image(own: Any) -> None:
    decoders = own()
    decoders.decode(IMAGES["tiff uint8"])
    os.kill(decoders.alive[0], signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{decoders.alive[0]}/stat").read_text().split()[2] == "Z", what="the end of the child")
    assert decoders.decode(IMAGES["tiff uint8"]).shape == (20, 30)


def test_closing_ends_all_children(own: Any) -> None:
    decoders = own(decode_children=2)
    decoders.decode(IMAGES["tiff uint8"])
    (child,) = decoders.alive
    os.kill(child, signal.SIGSTOP)
    thread, told = asked(decoders)
    wait_for(lambda: decoders._free.qsize() == 1, what="the question")
    decoders.close()
    thread.join(20)
    assert type(told[0]) is Unavailable and not Path(f"/proc/{child}").exists()
    with pytest.raises(Unavailable):
        decoders.decode(IMAGES["tiff uint8"])


def test_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "image.tif").write_bytes(IMAGES["tiff uint8"])
    code = (
        "import sys, time; from pathlib import Path; from app.imaging.decoders import Decoders; from app.settings"
        " import Settings; d = Decoders(Settings(_env_file=None)); d.decode(Path(sys.argv[1])); print(*d.alive,"
        " flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "image.tif")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()

    def gone() -> bool:
        stat = Path(f"/proc/{child}/stat")
        return not stat.exists() or stat.read_text().split()[2] == "Z"  # nobody may be there to bury it

    wait_for(gone, what="the end of the child")


def test_child_has_resource_limits(own: Any) -> None:
    decoders = own(decode_memory_bytes=2**30)
    decoders.decode(IMAGES["tiff uint8"])
    place = Path(f"/proc/{decoders.alive[0]}")
    limits = {line[:25].strip(): line[25:].split()[0] for line in (place / "limits").read_text().splitlines()}
    assert (limits["Max address space"], limits["Max core file size"]) == (str(2**30), "0") and int(
        limits["Max cpu time"]
    ) <= 25


def test_image_refused_by_its_header_needs_no_child(own: Any) -> None:
    decoders = own(max_pixels=100)
    with pytest.raises(TooManyPixels):
        decoders.decode(encode_png(np.zeros((20, 30), np.uint8)))
    with pytest.raises(UnsupportedImage):
        decoders.decode(b"")
    assert decoders.alive == []
