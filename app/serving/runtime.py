"""Opens a network in ONNX Runtime, with providers, threads and memory limits.

Imported lazily: without a model the gateway does not pay for ONNX Runtime. Threads. A prediction that is alone uses
every core; as soon as there are two, each uses one, because two wide runs get in each other's way. ONNX Runtime fixes
the number of threads of a session, so a network on several cores is two sessions, and a small one, which threads make
slower, is one. Tiles of a lone prediction, where there are at least as many as cores, run side by side on one core
each, which wastes less than every core on each tile in turn. Memory. All sessions take their activations from one
arena, so warm networks cost their weights only; what a session remembers of each size it saw is small (200 sizes: 2
MiB) and spares a twentieth of the time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import structlog

from app.errors import ModelSignature
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Stop, Stopped
from app.serving.providers import NAMES, Provider, attempts

WARM_SIDE = {2: 256, 3: 64}
"""Pixels along each side of the image that a network is warmed with."""
Quickest = Callable[[Mapping[str, Callable[[], object]], Callable[[], float]], dict[str, float]]
"""Measures the seconds of each of some works by a clock."""
SMALL_S = 0.003
"""Seconds on one core below which other cores are not woken: that costs more than they spare."""
WORTH_A_BATCH = 0.8
"""Most of the time of an image alone that an image in a batch may take."""
MOST_TURNS, LONG_S = 20, 0.5
"""How often something is measured at load, and after how many seconds that is enough; a network that would need longer
for a batch fills its device without one.
"""

log = structlog.get_logger()


class Network:
    """A network that runs: called with a scaled batch, it answers with probabilities."""

    def __init__(
        self,
        content: bytes,
        manifest: Manifest,
        load: Load,
        *,
        threads: int | None,
        order: Sequence[Provider] = ("cpu",),
        device: int = 0,
    ):
        self._manifest, self._load = manifest, load
        cores = threads or os.cpu_count() or 1
        self._wide = open_session(content, cores, order, device)
        self.provider = self._wide.get_providers()[0]
        self.device = device if self.provider != NAMES["cpu"] else None
        self._narrow = self._wide if cores == 1 or self.device is not None else open_session(content, 1)
        self._cores, self._size = cores, len(content)
        self.batch = 1
        """Images that are best predicted together when several wait."""
        check_signature(self._wide, manifest)

    @property
    def bytes(self) -> int:
        """Memory of its weights."""
        return self._size * (1 if self._narrow is self._wide else 2)

    @property
    def threads(self) -> int | None:
        """Cores that a prediction uses when it is alone; None on a GPU."""
        if self.device is not None:
            return None
        return 1 if self._narrow is self._wide else self._cores

    @property
    def place(self) -> str:
        """Provider and GPU: `CUDAExecutionProvider:1`."""
        return self.provider if self.device is None else f"{self.provider}:{self.device}"

    def __call__(self, batch: np.ndarray, stop: Stop) -> np.ndarray:
        """(N, C, ...) float32 to (N, K, ...) float32. Stopped when `stop` was asked."""
        answer = self.extra(self._manifest.output, batch, stop)
        return probabilities(answer, self._manifest)

    def extra(self, name: str, batch: np.ndarray, stop: Stop) -> np.ndarray:
        """One output of the network by its name; only what that output needs is computed.

        Stopped when `stop` was asked.
        """
        options = stop.options()

        def run(session: Any, images: np.ndarray) -> np.ndarray:
            return answered(session, name, images, self._manifest, options)

        with self._load.one_more() as alone:
            try:
                if alone and self.device is None and 1 < self._cores <= len(batch):
                    parts = np.array_split(batch, self._cores)
                    return np.concatenate(list(_side_by_side(self._cores).map(partial(run, self._narrow), parts)))
                return run(self._wide if alone else self._narrow, batch)
            except Exception:
                if stop.asked:
                    raise Stopped from None
                raise

    def warm(self, *, batch_most: int = 1, quickest: Quickest | None = None) -> None:
        """Run in every session, so that the first caller does not pay for memory and threads, and keep what pays:
        several threads, batches of `batch_most`.
        """
        quickest = quickest or take_turns
        side = WARM_SIDE[self._manifest.dimensions]
        sides = (
            list(self._manifest.tile)
            if self._manifest.sides == "tile"
            else [
                min(tile, math.ceil(side / self._manifest.multiple) * self._manifest.multiple)
                for tile in self._manifest.tile
            ]
        )
        batch = np.zeros((batch_most, self._manifest.channels, *sides), np.float32)

        def run(session: Any, count: int) -> Callable[[], object]:
            return lambda: answered(session, self._manifest.output, batch[:count], self._manifest)

        run(self._wide, 1)()
        if self._narrow is self._wide and batch_most == 1:
            return  # there is nothing to choose
        # One thread of a CPU is timed by what it works, which no neighbour disturbs; a GPU works while the thread
        # waits.
        clock = time.thread_time if self.device is None else time.perf_counter
        alone = run(self._narrow, 1)
        alone_s = quickest({"one": alone}, clock)["one"]
        if self.device is None and alone_s < SMALL_S:
            self._wide = self._narrow
        if batch_most > 1 and batch_most * alone_s < LONG_S:
            shared_s = quickest({"one": alone, "all": run(self._narrow, batch_most)}, clock)
            if shared_s["all"] / batch_most <= WORTH_A_BATCH * shared_s["one"]:
                self.batch = batch_most


def answered(session: Any, name: str, images: np.ndarray, manifest: Manifest, options: Any = None) -> np.ndarray:
    """One output of a session for any number of images, (N, ...) float32.

    A network of a fixed batch gets as many at once; the last of them is repeated where they do not go round.
    """
    size = manifest.batch or len(images)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        asked = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) if len(part) < size else part
        (answer,) = session.run([name], {manifest.input: asked}, options)
        parts.append(answer[: len(part)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def take_turns(works: Mapping[str, Callable[[], object]], clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each at its quickest; they take turns, so that whatever disturbs one disturbs all."""
    spent_s = dict.fromkeys(works, math.inf)
    began = time.perf_counter()
    for _ in range(MOST_TURNS):
        for name, work in works.items():
            started = clock()
            work()
            spent_s[name] = min(spent_s[name], clock() - started)
        if time.perf_counter() - began > LONG_S:
            break
    return spent_s


def probabilities(answer: np.ndarray, manifest: Manifest) -> np.ndarray:
    """(N, K, ...) float32 in [0, 1] from what the network answers; logits go through the activation that the manifest
    names.
    """
    if manifest.answers == "probability":
        return answer
    if manifest.activation == "sigmoid":
        return 0.5 * np.tanh(0.5 * answer) + 0.5  # the sigmoid, written so that no exponential overflows
    powers = np.exp(answer - answer.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def open_session(content: bytes, threads: int, order: Sequence[Provider] = ("cpu",), device: int = 0) -> Any:
    """An ONNX Runtime session on the first provider of `order` that works here; ModelSignature when not even the CPU
    opens it.
    """
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.load_model_format", "ONNX"
    )  # else bytes that say ORTM at the fifth would be read as another format
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads that wait for a part of a run spin, which takes a fifth off it; waiting for the next run, they would burn
    # the cores that others need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    *better, cpu = attempts(order, onnxruntime.get_available_providers(), device)
    for wanted in better:
        try:
            return onnxruntime.InferenceSession(content, options, providers=wanted)
        except Exception as error:
            log.warning("provider_failed", provider=wanted[0][0], device=device, exc_info=error)
    try:
        return onnxruntime.InferenceSession(content, options, providers=cpu)
    except Exception as error:
        raise ModelSignature("ONNX Runtime cannot open this network. Export it again.") from error


@cache
def _side_by_side(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tiles")


@cache
def _share_memory() -> None:
    from onnxruntime import OrtAllocatorType, OrtArenaCfg, OrtMemoryInfo, OrtMemType, create_and_register_allocator

    as_requested = OrtArenaCfg({"arena_extend_strategy": 1})  # the other one doubles, and never gives back
    create_and_register_allocator(
        OrtMemoryInfo("Cpu", OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, OrtMemType.DEFAULT), as_requested
    )


def check_signature(session: Any, manifest: Manifest) -> None:
    """The network has the input and the output that its manifest promises, for images of the number and the sides that
    it promises.
    """
    for word, nodes, name, channels in (
        ("input", session.get_inputs(), manifest.input, manifest.channels),
        ("output", session.get_outputs(), manifest.output, manifest.outputs),
    ):
        if not any(node.name == name and _fits(node, channels, manifest) for node in nodes):
            there = ", ".join(f"{node.name} {node.type} {node.shape}" for node in nodes)
            sides = (
                f"{manifest.dimensions} sides of any length" if manifest.sides == "any" else f"sides {manifest.tile}"
            )
            raise ModelSignature(
                f"The network's {word} is {there}; its manifest promises {name}, float32, ({manifest.batch or 'N'},"
                f" {channels}, {sides}). Export it again."
            )
    for name in manifest.extra_outputs:
        node = next((node for node in session.get_outputs() if node.name == name), None)
        if node is None or node.type != "tensor(float)" or len(node.shape) != 2 or node.shape[1] != 2:
            there = "missing" if node is None else f"{node.type} {node.shape}"
            raise ModelSignature(
                f"The network's output {name} is {there}; its manifest promises float32, (N, 2). Export it again."
            )


def _fits(node: Any, channels: int, manifest: Manifest) -> bool:
    if node.type != "tensor(float)" or len(node.shape) != manifest.dimensions + 2:
        return False
    promised = (
        manifest.batch,
        channels,
        *(manifest.tile if manifest.sides == "tile" else [None] * manifest.dimensions),
    )
    return not any(
        isinstance(side, int) and side != expected for side, expected in zip(node.shape, promised, strict=True)
    )
