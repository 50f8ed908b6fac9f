"""Memory and time of predicting large images.

    python -m benchmarks.large [--cases photograph volume] [--rounds 3] [--deep]

Each case in a fresh process, with random weights. *Tile* is what the network needs for one tile, the resident peak of
the first one; *predict* and *request* are resident peaks beyond that: of `Predictor.predict` beside the decoded image,
and of file -> decode -> predict -> encode, image included, both in bytes of the image. *Loop* runs the same tiles one
after the other, scales and thresholds them, without weights or seams. Time is the CPU's, with one thread, the least of
the rounds; the contenders take turns. --deep predicts in two other tilings: how many pixels of the mask differ (those
whose probability is as near to the threshold as rounding), and the Betti numbers. The threshold is the median of a
corner, so that the mask has much topology to break.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import tempfile
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.losses import forget_peak, resident

CASES = {
    "photograph": ((1, 2336, 3504), np.uint8),
    "photograph in colour": ((3, 2336, 3504), np.uint8),
    "volume": ((1, 300, 512, 512), np.uint8),
    "volume of int16": ((1, 300, 512, 512), np.int16),
}
CHANNELS = {2: [8, 16, 32], 3: [8, 16]}
TILES = {2: (512, 384, 640), 3: (96, 64, 80)}
"""Sides of a tile: as exported, and two others that must answer the same."""


def exported(channels: int, dimensions: int, folder: Path) -> tuple[bytes, dict[str, Any]]:
    """A U-Net as it is served, and its manifest."""
    import torch

    from benchmarks.serving import manifest
    from models.export import write_onnx
    from models.networks import build

    torch.manual_seed(0)
    unet = build(
        {"name": "unet", "dimensions": dimensions, "channels": CHANNELS[dimensions]},
        channels_in=channels,
        channels_out=1,
    ).eval()
    write_onnx(unet, channels, folder / "model.onnx")
    content = (folder / "model.onnx").read_bytes()
    return content, manifest(content, unet) | {
        "dimensions": dimensions,
        "channels": channels,
        "tile": [TILES[dimensions][0]] * dimensions,
    }


def image(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Blobs with noise."""
    rng, pixels = np.random.default_rng(0), np.empty(shape, dtype)
    rows, columns = (np.sin(np.arange(side) / 9) for side in shape[-2:])
    for place in np.ndindex(*shape[:-2]):
        field = 128 + 60 * np.multiply.outer(np.roll(rows, 3 * place[-1]), columns) + rng.normal(0, 8, shape[-2:])
        pixels[place] = np.clip(field, 0, 255)
    return pixels


def loop(predictor: Any, picture: Any) -> np.ndarray:
    """The mask by the same tiles, each pixel by the last tile that has it."""
    from app.serving.pipeline import Stop, filled, fit, plan
    from app.serving.scaling import Scaler

    pixels, _ = fit(picture.pixels, predictor.manifest)
    scaler, stop, mask = Scaler(pixels, predictor.manifest.scaling), Stop(), np.empty(picture.shape, np.uint8)
    for place in product(*plan(picture.shape, predictor.manifest)):
        window = tuple(part for part, _ in place)
        answer = predictor.run(scaler(filled(pixels, window, predictor.manifest.padding))[None], stop)[0, 0]
        inside = mask[window]
        inside[...] = answer[tuple(slice(side) for side in inside.shape)] > predictor.manifest.threshold
    return mask


def grown(work: Any) -> tuple[Any, float]:
    """What it answers, and resident MB at most beyond what was there."""
    before = forget_peak("cpu")
    answer = work()
    return answer, max(resident()[1] - before, 0.0)


def measure(case: str, rounds: int, threads: int, deep: bool) -> dict[str, Any]:
    """Every figure of one case."""
    import torch

    from app import imaging
    from app.imaging.decoders import Decoders
    from app.imaging.picture import Picture
    from app.serving import answers
    from app.serving.contract import Manifest
    from app.serving.load import Load
    from app.serving.pipeline import Predictor
    from app.serving.runtime import Network
    from app.settings import Settings
    from topology.components import betti_numbers

    torch.set_num_threads(1)
    shape, dtype = CASES[case]
    dimensions = len(shape) - 1
    pixels = image(shape, dtype)
    size = pixels.nbytes / 2**20
    with tempfile.TemporaryDirectory() as folder:
        content, facts = exported(1, dimensions, Path(folder))
        facts |= {"onnx_sha256": hashlib.sha256(content).hexdigest()}
        picture = Picture(pixels, "png")
        one = Picture(np.ascontiguousarray(pixels[(slice(None), *(slice(side) for side in facts["tile"]))]), "png")
        manifest = Manifest.model_validate(facts)
        network = Network(content, manifest, Load(), threads=threads)
        some = Picture(np.ascontiguousarray(one.pixels[(slice(None), *[slice(64)] * dimensions)]), "png")
        facts["threshold"] = float(np.median(Predictor(manifest, network).predict(some).probability))
        manifest = Manifest.model_validate(facts)
        predictor = Predictor(manifest, network, tile_batch=threads)
        form = "image/png" if dimensions == 2 else "application/gzip"
        answers.artifact("mask", predictor.predict(some, probability=False), some, form)  # imports
        found: dict[str, Any] = {
            "case": case,
            "input_mb": size,
            "tile_mb": grown(lambda: predictor.predict(one, probability=False))[1],
        }
        predict = partial(predictor.predict, picture, probability=False)
        answer, found["predict_mb"] = grown(predict)
        found["tiles"] = answer.tiles
        seconds: dict[str, list[float]] = {"predict": [], "loop": []}
        works = {"predict": predict, "loop": partial(loop, predictor, picture)}
        for _ in range(rounds):
            for name in works:
                began = time.process_time()
                works[name]()
                seconds[name].append(time.process_time() - began)
        found |= {f"{name}_s": min(spent) for name, spent in seconds.items() if spent}
        if deep:
            found["betti"], found["apart"] = [betti_numbers(answer.labels)], []
            for side in TILES[dimensions][1:]:
                other = Predictor(
                    Manifest.model_validate(facts | {"tile": [side] * dimensions}), predictor.run
                ).predict(picture, probability=False)
                found["betti"].append(betti_numbers(other.labels))
                found["apart"].append(int((other.labels != answer.labels).sum()))
                del other
        del answer
        path = Path(folder) / "image"
        path.write_bytes(imaging.encode_png(pixels) if dimensions == 2 else imaging.encode_nifti_gz(pixels[0]))
        del pixels, picture, predict, works
        decoders = Decoders(Settings(_env_file=None))
        decoders.read_header(path)

        def request() -> int:
            decoded = decoders.decode(path)
            said = predictor.predict(decoded, probability=False)
            decoded = decoded.without_pixels()  # as the route does
            return len(answers.artifact("mask", said, decoded, form).content)

        _, found["request_mb"] = grown(request)
        decoders.close()
    return found


def tell(found: dict[str, Any]) -> None:
    beyond = {name: f"{found[name] / found['input_mb']:.2f}x" for name in ("predict_mb", "request_mb")}
    ratio = f"{found['predict_s']:.1f} s, {found['predict_s'] / found['loop_s']:.3f}x" if "loop_s" in found else ""
    agree = f"{found['apart']} pixels apart; {found['betti']}" if "betti" in found else ""
    print(
        f"| {found['case']} | {found['input_mb']:.0f} | {found['tiles']} | {found['tile_mb']:.0f} |"
        f" {beyond['predict_mb']} | {beyond['request_mb']} | {ratio} | {agree} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=0, help="also the time, the least of so many rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--deep", action="store_true", help="also two other tilings")
    options = parser.parse_args()
    print(
        "| image | MB | tiles | tile, MB | predict | request | beside the loop | other tilings agree"
        " |\n|---|---:|---:|---:|---:|---:|---:|---|"
    )
    for case in options.cases:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            tell(fresh.apply(measure, (case, options.rounds, options.threads, options.deep)))


if __name__ == "__main__":
    main()
