"""The kernels beside their peers, in one run: `python benchmarks/kernels.py` prints the table of benchmarks/README.md.

Contenders take turns, each on one thread, and the least CPU time of all rounds counts, so that a busy machine matters
little. The last column is peer time over our time; the wanted ratio comes from the issue that asked for the kernel.
`--scaling` measures growth with size and draws docs/pictures/topology-scaling.svg; `--memory` measures peak memory in
fresh processes. Inputs, seed 0: noise = sigmoid of Gaussian-filtered noise (sigma 3); vessels = drawn tubes; white =
uniform noise; a noisy prediction = sigmoid of that filtered noise and as much of each pixel by itself.
A photograph and a raw MRI volume are read below `--data`, and left out where that folder is absent.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter

from topology.components import betti_numbers, label_background, label_components
from topology.matching import match
from topology.partitions import adapted_rand, variation_of_information
from topology.persistence import persistence
from topology.skeleton import skeletonize

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "topology-scaling.svg"
CPP_MATCHING = {(256, 256): 43 / 12, (512, 512): 222 / 64, (64, 64, 64): 995 / 105}
"""Time of the C++ Betti matching as a multiple of cripser's persistence on the same machine and input."""


def noise(shape, seed=0):
    """float32 sigmoid of smoothed noise with unit spread."""
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return (1 / (1 + np.exp(-2 * values / values.std()))).astype(np.float32)


def vessels(shape, count, seed=0):
    """bool mask of straight tubes of radius 3 between random points."""
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        ends = random.random((2, len(shape))) * shape
        line = (ends[0] + np.linspace(0, 1, 1000)[:, None] * (ends[1] - ends[0])).astype(int)
        mask[tuple(line.T)] = True
    return binary_dilation(mask, iterations=3)


def least_times(ours, peer, rounds):
    """Least CPU seconds of each of two calls that take turns."""
    best = [np.inf, np.inf]
    ours()
    for _ in range(rounds):
        for k, call in enumerate((ours, peer)):
            start = time.process_time()
            call()
            best[k] = min(best[k], time.process_time() - start)
    return best


def persistence_rows():
    import cripser
    import gudhi
    from gudhi._pers_cub_low_dim_ext import _persistence_on_rectangle_from_top_cells as gudhi_fast

    def gudhi_cofaces(values):
        cells = gudhi.CubicalComplex(top_dimensional_cells=1.0 - values)
        cells.compute_persistence()
        return cells.cofaces_of_persistence_pairs()

    plane = noise((512, 512))
    wide = 1.0 - plane.astype(np.float64)
    yield (
        "persistence with coordinates, 512 x 512",
        "cripser",
        8,
        lambda: persistence(plane),
        lambda: cripser.compute_ph(wide, maxdim=1),
        9,
    )
    yield "the same", "gudhi, cofaces", 50, lambda: persistence(plane), lambda: gudhi_cofaces(plane), 2
    yield "the same", "gudhi, values only", 1 / 1.5, lambda: persistence(plane), lambda: gudhi_fast(wide, 0.0), 15
    for shape in ((64, 64, 64), (128, 128, 72)):
        volume, name = noise(shape), " x ".join(map(str, shape))
        yield (
            f"persistence dims 0+1+2, {name}",
            "cripser",
            2,
            lambda v=volume: persistence(v),
            lambda v=volume: cripser.compute_ph(1.0 - v, maxdim=2),
            3,
        )
        yield (
            f"persistence dims 0+2, {name}",
            "cripser, all dims",
            8,
            lambda v=volume: persistence(v, dimensions=(0, 2)),
            lambda v=volume: cripser.compute_ph(1.0 - v, maxdim=2),
            3,
        )


def hard_maps(data):
    """{name: float32 map} on which persistence has much to do; those of real images only where the folder is."""
    random = np.random.default_rng(0)
    maps = {}
    photograph, volume = data / "chase_db1/images/Image_01L.jpg", data / "msd_hippocampus/images/hippocampus_001.nii.gz"
    if photograph.exists():
        maps["photograph"] = np.asarray(Image.open(photograph), np.float32)[200:712, 200:712, 1] / 255
    for name, shape in (("", (512, 512)), (" in space", (64, 64, 64))):
        doubt = gaussian_filter(random.standard_normal(shape), 3)
        doubt = 2 * doubt / doubt.std() + random.standard_normal(shape)
        maps[f"noisy prediction{name}"] = (1 / (1 + np.exp(-doubt))).astype(np.float32)
        maps[f"white noise{name}"] = random.random(shape, np.float32)
    if volume.exists():
        maps["raw MRI volume"] = np.asarray(nibabel.load(volume).dataobj, np.float32)
    return maps


def hard_rows(data):
    import cripser
    from gudhi._pers_cub_low_dim_ext import _persistence_on_rectangle_from_top_cells as gudhi_fast

    for name, values in hard_maps(data).items():
        work, upside_down = f"persistence, {name}, {' x '.join(map(str, values.shape))}", -values.astype(np.float64)
        yield (
            work,
            "cripser",
            3 if "white" in name else 4,
            lambda v=values: persistence(v),
            lambda v=upside_down: cripser.compute_ph(v, maxdim=v.ndim - 1),
            5,
        )
        if values.ndim == 2:
            ours, theirs = lambda v=values: persistence(v), lambda v=upside_down: gudhi_fast(v, 0.0)
            yield work, "gudhi, values only", 1 / 1.5, ours, theirs, 9


def matching_rows():
    import cripser

    for shape, multiple in CPP_MATCHING.items():
        first, second = noise(shape), noise(shape, seed=1)
        second = (0.7 * first + 0.3 * second).astype(np.float32)
        name, wanted = " x ".join(map(str, shape)), (5 if len(shape) == 2 else 3) / multiple
        yield (
            f"Betti matching, {name} (C++: {multiple:.1f} x cripser)",
            "cripser, one map",
            wanted,
            lambda a=first, b=second: match(a, b),
            lambda a=first: cripser.compute_ph(1.0 - a, filtration="V", maxdim=a.ndim - 1),
            3,
        )


def skeleton_rows():
    from skimage.morphology import skeletonize as peer

    for shape, count in (((512, 512), 25), ((2048, 2048), 200), ((128, 128, 72), 12)):
        masks = {
            "noise": noise(shape) > 0.5,
            "vessels": vessels(shape, count),
            "white": np.random.default_rng(0).random(shape) < 0.5,
        }
        for (texture, mask), method in product(masks.items(), ("zhang", "lee") if len(shape) == 2 else ("lee",)):
            yield (
                f"skeleton {' x '.join(map(str, shape))}, {texture}",
                f"scikit-image {method}",
                2 if method == "zhang" else 3,
                lambda m=mask: skeletonize(m),
                lambda m=mask, k=method: peer(m, method=k),
                9 if mask.size < 1e6 else 3,
            )


def mask_rows():
    import cc3d
    import gudhi
    from skimage.measure import euler_number
    from skimage.metrics import adapted_rand_error as peer_rand, variation_of_information as peer_voi

    def cc3d_betti(mask):
        components = cc3d.connected_components(mask, connectivity=8 if mask.ndim == 2 else 26, return_N=True)[1]
        euler = euler_number(mask, mask.ndim)
        if mask.ndim == 2:
            return components, components - euler
        cavities = (
            cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=6, return_N=True)[1] - 1
        )
        return components, components + cavities - euler, cavities

    def gudhi_betti(mask):
        cells = gudhi.CubicalComplex(top_dimensional_cells=1.0 - mask)
        cells.compute_persistence()
        return cells.persistent_betti_numbers(0.5, 0.5)

    for shape in ((512, 512), (128, 128, 72)):
        mask, name = noise(shape) > 0.5, " x ".join(map(str, shape))
        yield (
            f"Betti numbers, {name}",
            "cc3d + scikit-image Euler",
            1.5,
            lambda m=mask: betti_numbers(m),
            lambda m=mask: cc3d_betti(m),
            9,
        )
        yield f"Betti numbers, {name}", "gudhi", 100, lambda m=mask: betti_numbers(m), lambda m=mask: gudhi_betti(m), 1
    for shape in ((2048, 2048), (96, 96, 96)):
        mask, near = noise(shape) > 0.5, 8 if len(shape) == 2 else 26
        yield (
            f"labels, {' x '.join(map(str, shape))}",
            "cc3d",
            1,
            lambda m=mask: label_components(m),
            lambda m=mask, k=near: cc3d.connected_components(m, connectivity=k),
            5,
        )
    cells = [label_background(noise((512, 512), seed) > 0.4)[0] for seed in (0, 1)]
    yield "VOI, 512 x 512", "scikit-image", 3, lambda: variation_of_information(*cells), lambda: peer_voi(*cells), 9
    yield "adapted Rand, 512 x 512", "scikit-image", 3, lambda: adapted_rand(*cells), lambda: peer_rand(*cells), 9


def machine():
    """One line: processor, Python and the versions of all contenders."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    names = ("numpy", "numba", "cripser", "gudhi", "scikit-image", "connected-components-3d")
    return f"{cpu}, Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)


def print_table(data):
    print(f"{machine()}\n\n| work | ours, ms | peer | peer, ms | wanted | reached |\n|---|---:|---|---:|---:|---:|")
    for rows in (persistence_rows, partial(hard_rows, data), matching_rows, skeleton_rows, mask_rows):
        for work, peer, wanted, ours, theirs, rounds in rows():
            mine, other = (1e3 * seconds for seconds in least_times(ours, theirs, rounds))
            verdict = "" if other / mine >= wanted else " (short)"
            print(
                f"| {work} | {mine:.2f} | {peer} | {other:.1f} | {wanted:.2g}x | {other / mine:.1f}x{verdict} |",
                flush=True,
            )


def peak_bytes(call, shape):
    """Peak resident bytes a pixel of one call on noise of a shape, beyond those held before it, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/noise.npy"
        np.save(path, noise(shape))
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import kernels;"
            f" kernels.show_peak({call!r}, {path!r})"
        )
        return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def show_peak(call, path):
    """Print what `peak_bytes` reads; a small input goes first, so that code is loaded before."""
    calls = {
        "persistence": persistence,
        "match": lambda v: match(v, v[::-1]),
        "skeletonize": lambda v: skeletonize(v > 0.5),
    }
    values = np.load(path)
    calls[call](np.ascontiguousarray(values[(slice(0, 24),) * values.ndim]))
    before = _resident("VmRSS")
    calls[call](values)
    print((_resident("VmHWM") - before) / values.size)


def _resident(name):
    """Bytes of a line of /proc/self/status; unlike getrusage its peak does not start at that of the parent process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def print_memory():
    print("| call | shape | peak bytes a pixel | MB |\n|---|---|---:|---:|")
    for call, shape in (
        ("persistence", (4096, 4096)),
        ("match", (2048, 2048)),
        ("skeletonize", (4096, 4096)),
        ("persistence", (128, 128, 128)),
        ("match", (64, 64, 64)),
        ("match", (128, 128, 72)),
    ):
        peak = peak_bytes(call, shape)
        print(
            f"| {call} | {' x '.join(map(str, shape))} | {peak:.0f} | {peak * np.prod(shape) / 1e6:.0f} |", flush=True
        )


def scaling():
    """Least seconds of each kernel over sizes: {name: [(pixels, seconds)]}."""
    sizes = {2: (256, 512, 1024, 2048, 4096), 3: (32, 64, 96, 128, 192)}
    calls = {
        "persistence": persistence,
        "skeleton": lambda v: skeletonize(v > 0.5),
        "Betti numbers": lambda v: betti_numbers(v > 0.5),
    }
    found = {}
    for ndim, sides in sizes.items():
        for side in sides:
            values = noise((side,) * ndim)
            for name, call in calls.items():
                seconds = least_times(lambda c=call, v=values: c(v), lambda: None, 3)[0]
                found.setdefault(f"{name} {ndim}D", []).append((values.size, seconds))
    return found


def draw_scaling(found):
    """Log-log SVG of seconds against pixels, one line a kernel, with a dashed line of slope one."""
    colours = ("#1b6ca8", "#c44536", "#3a7d44", "#7b4fa3", "#b8860b", "#444444")

    def x(pixels):
        return 70 + 95 * (np.log10(pixels) - 4.2)

    def y(seconds):
        return 300 - 52 * (np.log10(seconds) + 4.5)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="360" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="360" fill="white"/>',
    ]
    parts += (
        f'<path d="M70 {y(10.0**power):.1f}H400" stroke="#ddd"/><text x="62" y="{y(10.0**power) + 4:.1f}"'
        f' text-anchor="end">{10.0**power:g} s</text>'
        for power in range(-4, 2)
    )
    parts += (
        f'<path d="M{x(10.0**power):.1f} 20V310" stroke="#ddd"/><text x="{x(10.0**power):.1f}" y="326"'
        f' text-anchor="middle">10^{power} pixels</text>'
        for power in (5, 6, 7)
    )
    parts.append(
        f'<path d="M{x(2e4):.1f} {y(2e-4):.1f}L{x(2e7):.1f} {y(2e-1):.1f}" stroke="#999" stroke-dasharray="4 4"/>'
    )
    parts.append(f'<text x="{x(2e7) - 4:.1f}" y="{y(2e-1) + 16:.1f}" text-anchor="end" fill="#777">slope 1</text>')
    for k, (name, points) in enumerate(found.items()):
        way = " ".join(f"{x(pixels):.1f},{y(seconds):.1f}" for pixels, seconds in points)
        slope = np.polyfit(*np.log(np.array(points)).T, 1)[0]
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colours[k]}" stroke-width="2"/>')
        parts.append(f'<text x="420" y="{50 + 20 * k}" fill="{colours[k]}">{name}: exponent {slope:.2f}</text>')
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scaling", action="store_true", help="measure growth and draw the picture instead of the table"
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of the table")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the real images")
    chosen = parser.parse_args()
    if chosen.scaling:
        times = scaling()
        draw_scaling(times)
        for kernel, points in times.items():
            print(kernel, ", ".join(f"{pixels} px {seconds * 1e3:.2f} ms" for pixels, seconds in points))
    elif chosen.memory:
        print_memory()
    else:
        print_table(chosen.data)
