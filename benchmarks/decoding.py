"""Decoding in a warm child process against decoding in this process.

Run `python -m benchmarks.decoding`. It prints ratios of one run, and the memory and start time of a child.

Wall time, because the work moves to another process; run it on an idle machine.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from app.imaging import decode
from app.imaging.decoders import Decoders
from app.settings import Settings

REPEATS = 15


def files() -> dict[str, bytes]:
    """Encoded images of noise on a ramp, which compresses about as badly as microscopy does."""
    rng = np.random.default_rng(0)

    def pixels(side: int) -> np.ndarray:
        return (np.linspace(0, 180, side)[:, None] + rng.integers(0, 70, (side, side))).astype(np.uint8)

    found = {}
    for side in (512, 2048):
        for kind in ("PNG", "TIFF"):
            file = io.BytesIO()
            (
                Image.fromarray(pixels(side)).save(file, "png")
                if kind == "PNG"
                else tifffile.imwrite(file, pixels(side), compression="zlib")
            )
            found[f"{kind} {side} x {side}"] = file.getvalue()
    return found


def fastest(work, *arguments) -> float:
    """Milliseconds of the fastest of several runs."""
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work(*arguments)
        spent.append(time.perf_counter() - started)
    return 1000 * min(spent)


def main() -> None:
    settings = Settings(_env_file=None)
    children = Decoders(settings)
    children._is_small = lambda source: False  # so that small files take the long way, too
    try:
        first = next(iter(files().values()))
        started = time.perf_counter()
        children.decode(first)
        status = Path(f"/proc/{children.alive[0]}/status").read_text()
        print(
            f"start and first image {time.perf_counter() - started:.2f} s, resident"
            f" {int(status.split('VmRSS:')[1].split()[0]) // 1024} MiB"
        )
        print(f"{'image':18} {'here ms':>9} {'child ms':>9} {'ratio':>6}")
        for name, content in files().items():
            assert np.array_equal(decode(content, settings).pixels, children.decode(content).pixels)
            here, there = fastest(decode, content, settings), fastest(children.decode, content)
            print(f"{name:18} {here:9.2f} {there:9.2f} {there / here:6.2f}")
    finally:
        children.close()


if __name__ == "__main__":
    main()
