"""Latency of the HTTP path, beside the same work in process and bare ONNX Runtime.

    python benchmarks/serving.py [--rounds 30] [--large] [--peers PYTHON] [--json FILE]

T is one tiny convolution on 256 x 256, which shows the bare cost of HTTP; S is a U-Net of 8/16/32 channels on 256 x
256, M one of 32/64/128 on 512 x 512; --large adds a photograph of 8.2 megapixels through S in tiles. PNG in, PNG mask
out. *Bare* is one `session.run` with one thread; *in process* is decode + scale + run + encode in a loop, one thread,
no HTTP; under load, one such loop for each core. The gateway is a process of its own with SQLite and an API key, as
`toposerve up` starts it; the client is a raw socket that is kept open. --peers names the Python of an environment with
`benchmarks/peers/requirements.txt`, in which BentoML and LitServe do the work of S with as many processes as cores.
Weights are random: no figure here depends on them.

One file, though long, so that every contender and what it is asked can be read beside each other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

CONCURRENCY = (1, 8, 32)
TICK = os.sysconf("SC_CLK_TCK")


# Networks and images ------------------------------------------------------------------------------------------------


def networks(folder: Path) -> dict[str, dict[str, Any]]:
    """name -> {onnx, manifest, png}: what is served, and the image it is asked about."""
    import torch

    from models.export import write_onnx
    from models.networks import build

    torch.manual_seed(0)
    tiny = torch.nn.Conv2d(1, 1, 3, padding=1)
    tiny.dimensions, tiny.multiple, tiny.receptive_field = 2, 1, 3
    made = {"T": (tiny, 256), "S": (_unet(build, 8, 16, 32), 256), "M": (_unet(build, 32, 64, 128), 512)}
    found = {}
    for name, (network, side) in made.items():
        path = folder / f"{name}.onnx"
        write_onnx(network.eval(), 1, path)
        content = path.read_bytes()
        found[name] = {"onnx": content, "manifest": manifest(content, network), "png": png(side, side)}
    return found


def _unet(build: Callable[..., Any], *channels: int) -> Any:
    return build({"name": "unet", "dimensions": 2, "channels": list(channels)}, channels_in=1, channels_out=1)


def manifest(content: bytes, network: Any) -> dict[str, Any]:
    """The manifest of a network with random weights."""
    import hashlib

    return {
        "format": "toposerve-manifest/1",
        "task": "segmentation",
        "dimensions": 2,
        "channels": 1,
        "classes": ["background", "vessel"],
        "activation": "sigmoid",
        "threshold": 0.5,
        "scaling": {"kind": "image"},
        "multiple": network.multiple,
        "padding": "edge",
        "tile": [512, 512],
        "overlap": 0.25,
        "receptive_field": network.receptive_field,
        "opset": 18,
        "input": "image",
        "output": "probability",
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "weights_sha256": None,
        "spec": {},
        "step": 0,
        "metrics": {},
        "software": {},
        "verification": {"items": 0, "max_difference": 0.0, "tolerance": 1e-4, "mask_disagreements": 0},
    }


def png(rows: int, columns: int) -> bytes:
    """A smooth grey image with vessel-like structure, so that it compresses as photographs do."""
    from scipy.ndimage import gaussian_filter

    from app.imaging import encode_png

    field = gaussian_filter(np.random.default_rng(0).standard_normal((rows, columns)), 3)
    texture = np.random.default_rng(1).normal(0, 4, field.shape)
    return encode_png(np.clip(128 + 900 * field + texture, 0, 255).astype(np.uint8), 6)


# Contenders ---------------------------------------------------------------------------------------------------------


def bare(model: dict[str, Any]) -> Callable[[], None]:
    """`session.run` alone, one thread."""
    from app import imaging
    from app.settings import Settings

    session = _session(model["onnx"])
    pixels = imaging.decode(model["png"], Settings(_env_file=None)).pixels
    batch = pixels[None].astype(np.float32) / 255
    return lambda: session.run(None, {"image": batch})


def in_process(model: dict[str, Any]) -> Callable[[], None]:
    """decode + scale + run + threshold + encode, one thread, by the same codecs as the gateway."""
    from app import imaging
    from app.settings import Settings

    session, settings = _session(model["onnx"]), Settings(_env_file=None)

    def answer() -> bytes:
        pixels = imaging.decode(model["png"], settings).pixels
        scaled = ((pixels - pixels.mean(dtype=np.float64)) / (pixels.std(dtype=np.float64) + 1e-6)).astype(np.float32)
        probability = session.run(None, {"image": scaled[None]})[0][0, 0]
        return imaging.encode_png((probability > 0.5) * np.uint8(255))

    return answer


def tiles_in_process(model: dict[str, Any], content: bytes) -> Callable[[], None]:
    """The same tiles as the gateway's, decoded, run and encoded in a loop without weights or stitching."""
    from app import imaging
    from app.serving.contract import Manifest
    from app.serving.pipeline import plan
    from app.settings import Settings

    session, settings = _session(model["onnx"], threads=os.cpu_count() or 1), Settings(_env_file=None)

    def answer() -> bytes:
        pixels = imaging.decode(content, settings).pixels
        mean, std = pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64)
        mask = np.zeros(pixels.shape[1:], np.uint8)
        rows, columns = plan(pixels.shape[1:], Manifest.model_validate(model["manifest"]))
        for top, _ in rows:
            for left, _ in columns:
                tile = ((pixels[:, top, left] - mean) / (std + 1e-6)).astype(np.float32)
                pad = [(0, 0), (0, rows.side - tile.shape[1]), (0, columns.side - tile.shape[2])]
                probability = session.run(None, {"image": np.pad(tile, pad, mode="edge")[None]})[0][0, 0]
                mask[top, left] = (probability > 0.5)[: tile.shape[1], : tile.shape[2]]
        return imaging.encode_png(mask * np.uint8(255))

    return answer


def _session(content: bytes, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Connection:
    """One kept connection that asks the same question again and again."""

    def __init__(self, port: int, path: str, key: str, body: bytes):
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type:"
            f" image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    def __call__(self) -> bytes:
        self._socket.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._received()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"The gateway refused: {answer[:2000].decode(errors='replace')}")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self._received()
        return body

    def _received(self) -> bytes:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise SystemExit("The gateway closed the connection.")
        return piece


class Server:
    """A server in processes of its own, asked at one address."""

    path, key = "/predict", ""

    def __init__(self, command: list[str], port: int, *, environment: dict[str, str], cwd: Path):
        self.port = port
        self.process = subprocess.Popen(command, env=os.environ | environment, cwd=cwd, stdout=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise SystemExit(f"{self.process.args} did not start.") from None
                time.sleep(0.02)

    def ask(self, name: str, body: bytes, query: str = "") -> Connection:
        """A connection that asks about one image; a peer has one model only."""
        return Connection(self.port, self.path, self.key, body)

    @property
    def cpu_s(self) -> float:
        """CPU time that its processes have taken."""
        return sum(self._tree().values()) / TICK

    def _tree(self) -> dict[int, int]:
        """Ticks of the process and of all that come from it, by pid."""
        parents, ticks = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])

        def comes_from_us(pid: int) -> bool:
            return pid == self.process.pid or (pid in parents and comes_from_us(parents[pid]))

        return {pid: spent for pid, spent in ticks.items() if comes_from_us(pid)}

    def rest(self) -> None:
        """Wait until it has done what it does in the background after its start."""
        before = -1.0
        while self.cpu_s - before > 0.05:
            before = self.cpu_s
            time.sleep(1)

    def stop(self) -> None:
        family = self._tree()
        self.process.terminate()
        self.process.wait(30)
        for pid in family:  # LitServe leaves its workers behind
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def peer(name: str, python: str, model: Path) -> Server:
    """BentoML or LitServe with as many processes as cores."""
    port, cores, folder = _free_port(), str(os.cpu_count() or 1), Path(__file__).with_name("peers")
    command = {
        "LitServe": [python, "lit_service.py", str(port), cores],
        "BentoML": [python, "-m", "bentoml", "serve", "bento_service:Segmentation", "--port", str(port)],
    }[name]
    environment = {
        "SEGMENTER_ONNX": str(model),
        "WORKERS": cores,
        "BENTOML_HOME": str(model.parent),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return Server(command, port, environment=environment, cwd=folder)


class Gateway(Server):
    """The service in a process of its own."""

    path = "/v1/models/{name}@champion/predict"

    def __init__(self, folder: Path, models: dict[str, dict[str, Any]], **more: str):
        from app.settings import Settings
        from app.store import keys, projects, versions
        from app.store.blobs import Blobs
        from app.store.migrate import upgrade
        from app.store.models import move_alias, require
        from app.store.session import Database

        settings = Settings(_env_file=None, data_dir=folder)
        database, blobs = Database(settings), Blobs(settings)
        upgrade(database)
        with database.write() as session:
            self.key = keys.create(session, project="benchmark", name="benchmark", role="admin")
            project_id = projects.ensure(session, "benchmark").id
        for name, model in models.items():
            onnx = blobs.put(project_id, model["onnx"])
            with database.write() as session:
                version = versions.register(
                    session,
                    project_id=project_id,
                    job_id=None,
                    model=name,
                    manifest=model["manifest"],
                    spec={},
                    metrics={},
                    onnx=onnx,
                    weights=None,
                    dataset_version_id=None,
                    training_s=None,
                )
                move_alias(
                    session,
                    require(session, project_id, name),
                    "champion",
                    version,
                    who="benchmark",
                    gate=None,
                    expected=None,
                )
        database.dispose()
        port = _free_port()
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "--factory",
            "app.main:create",
            "--port",
            str(port),
            "--log-level",
            "warning",
            "--no-access-log",
            "--timeout-keep-alive",
            "60",
        ]
        super().__init__(
            command,
            port,
            environment={"TOPOSERVE_DATA_DIR": str(folder), "TOPOSERVE_LOG_LEVEL": "warning"} | more,
            cwd=Path(__file__).parents[1],
        )

    def ask(self, name: str, body: bytes, query: str = "") -> Connection:
        """A connection that asks model `name` about one image."""
        return Connection(self.port, self.path.format(name=name) + query, self.key, body)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Resident memory, now (VmRSS) or at most (VmHWM)."""
        return int(Path(f"/proc/{self.process.pid}/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def servers(models: dict[str, dict[str, Any]], python: str | None) -> Iterator[dict[str, Server]]:
    """The gateway with all models and, when there is a Python for them, the peers with S."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        found: dict[str, Server] = {"HTTP": Gateway(Path(folder), models, TOPOSERVE_PREDICT_PATIENCE="1000")}
        running.callback(found["HTTP"].stop)
        (Path(folder) / "S.onnx").write_bytes(models["S"]["onnx"])
        for name in ("BentoML", "LitServe") if python else ():
            found[name] = peer(name, str(python), Path(folder) / "S.onnx")
            running.callback(found[name].stop)
        for server in found.values():
            server.rest()
        yield found


# Measuring ----------------------------------------------------------------------------------------------------------


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call; contenders take turns, so that whatever disturbs one disturbs all."""
    for contender in contenders.values():
        contender(), contender()
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            contender()
            spent[name].append((time.perf_counter() - started) * 1000)
    return spent


def loaded(server: Server, name: str, body: bytes, clients: int, requests: int) -> dict[str, Any]:
    """Latencies, seconds and CPU time of a server at a number of clients that never rest."""
    spent: list[float] = []
    connections = [server.ask(name, body) for _ in range(clients)]
    for connection in connections[: os.cpu_count()]:
        connection()

    def ask(connection: Connection) -> None:
        for _ in range(requests // clients):
            started = time.perf_counter()
            connection()
            spent.append((time.perf_counter() - started) * 1000)

    threads = [threading.Thread(target=ask, args=(connection,)) for connection in connections]
    cpu, own, started = server.cpu_s, time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "spent_ms": spent,
        "seconds": time.perf_counter() - started,
        "cpu_s": server.cpu_s - cpu,
        "client_cpu_s": time.process_time() - own,
    }


def looped(pool: Any, model: dict[str, Any], clients: int, requests: int) -> dict[str, Any]:
    """The same figures of the work in process: one loop for each core, or one alone for one client."""
    loops = min(clients, os.cpu_count() or 1)
    started = time.perf_counter()
    found = pool.starmap(_loop, [(model, requests // loops)] * loops, chunksize=1)
    seconds = time.perf_counter() - started
    return {
        "spent_ms": [ms for each, _ in found for ms in each],
        "seconds": seconds,
        "cpu_s": sum(cpu for _, cpu in found),
        "client_cpu_s": 0.0,
    }


_LOOPS: dict[str, Callable[[], Any]] = {}


def _loop(model: dict[str, Any], rounds: int) -> tuple[list[float], float]:
    """Milliseconds of every round and the CPU seconds of all, in a process of the pool."""
    work = _LOOPS.setdefault(model["manifest"]["onnx_sha256"], in_process(model))
    work()
    spent, cpu = [], time.process_time()
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        spent.append((time.perf_counter() - started) * 1000)
    return spent, time.process_time() - cpu


def summary(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Several turns under load as one row."""
    spent = [ms for turn in turns for ms in turn["spent_ms"]]
    total = {name: sum(turn[name] for turn in turns) for name in ("seconds", "cpu_s", "client_cpu_s")}
    return percentiles(spent) | {
        "requests_per_s": len(spent) / total["seconds"],
        "cpu_ms": total["cpu_s"] / len(spent) * 1000,
        "client_cpu_ms": total["client_cpu_s"] / len(spent) * 1000,
    }


def percentiles(spent: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": float(np.percentile(spent, q)) for q in (50, 95, 99)}


def machine() -> dict[str, Any]:
    import fastapi
    import onnxruntime

    model = next(
        (
            line.partition(": ")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "fastapi": fastapi.__version__,
        "load": os.getloadavg()[0],
    }


TURNS = 4
"""How often the contenders take turns under load."""


def measure(rounds: int, large: bool, python: str | None) -> dict[str, Any]:
    """Every figure of the table."""
    with tempfile.TemporaryDirectory() as folder:
        models = networks(Path(folder))
    found: dict[str, Any] = {"machine": machine(), "alone": {}, "loaded": {}}
    with servers(models, python) as running, multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        served = running["HTTP"]
        for name, model in models.items():
            contenders = {"bare": bare(model), "in process": in_process(model)}
            contenders |= {
                each: server.ask(name, model["png"])
                for each, server in running.items()
                if server is served or name == "S"
            }
            if name == "M":
                contenders["HTTP + topology"] = served.ask(name, model["png"], "?topology=true")
            calls = interleaved(contenders, rounds if name != "M" else max(5, rounds // 2))
            found["alone"][name] = {contender: percentiles(spent) for contender, spent in calls.items()}
        for name in ("T", "S"):
            chosen = {each: server for each, server in running.items() if server is served or name == "S"}
            for clients in CONCURRENCY:
                turns: dict[str, list[dict[str, Any]]] = {each: [] for each in ("in process", *chosen)}
                for _ in range(TURNS):
                    turns["in process"].append(looped(pool, models[name], clients, max(64, rounds)))
                    for each, server in chosen.items():
                        turns[each].append(loaded(server, name, models[name]["png"], clients, max(64, rounds)))
                found["loaded"][f"{name} x {clients}"] = {each: summary(done) for each, done in turns.items()}
        if large:
            photograph = png(2336, 3504)
            calls = interleaved(
                {"tiles in process": tiles_in_process(models["S"], photograph), "HTTP": served.ask("S", photograph)},
                max(3, rounds // 10),
            )
            found["alone"]["8.2 Mpixel"] = {contender: percentiles(spent) for contender, spent in calls.items()}
        found["memory_mib"] = {"now": served.memory_mib(), "most": served.memory_mib("VmHWM")}
    found["client_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def tell(found: dict[str, Any]) -> None:
    """The table of the README."""
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print("\n| one client | contender | p50 ms | p95 | p99 | beside in process |\n|---|---|---|---|---|---|")
    for work, contenders in found["alone"].items():
        base = contenders.get("in process", contenders.get("tiles in process"))["p50_ms"]
        for contender, figures in contenders.items():
            print(
                f"| {work} | {contender} | {figures['p50_ms']:.2f} | {figures['p95_ms']:.2f} | {figures['p99_ms']:.2f}"
                f" | {figures['p50_ms'] / base:.2f}x, {figures['p50_ms'] - base:+.2f} ms |"
            )
    print(
        "\n| clients | contender | p50 ms | p95 | p99 | requests/s | CPU ms a request | beside in process | client CPU"
        " ms |\n|---|---|---|---|---|---|---|---|---|"
    )
    for work, contenders in found["loaded"].items():
        base = contenders["in process"]["cpu_ms"]
        for contender, figures in contenders.items():
            print(
                f"| {work} | {contender} | {figures['p50_ms']:.2f} | {figures['p95_ms']:.2f} | {figures['p99_ms']:.2f}"
                f" | {figures['requests_per_s']:.0f} | {figures['cpu_ms']:.2f} | {figures['cpu_ms'] / base:.2f}x |"
                f" {figures['client_cpu_ms']:.2f} |"
            )
    print(
        f"\nGateway memory: {found['memory_mib']['now']:.0f} MiB at the end, {found['memory_mib']['most']:.0f} MiB at"
        " most."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--large", action="store_true", help="also the 8.2 megapixel photograph")
    parser.add_argument(
        "--peers", metavar="PYTHON", help="the Python of an environment with benchmarks/peers/requirements.txt"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.large, arguments.peers)
    tell(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
