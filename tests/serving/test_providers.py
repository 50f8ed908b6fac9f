"""Choice of ONNX provider and GPU, with simulated devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.errors import ModelSignature
from app.serving import registry, runtime
from app.serving.providers import NAMES, attempts, count_gpus, place
from app.settings import Settings
from tests.gateway import Gateway
from tests.images import noise_png
from tests.serving import networks

EVERYTHING = list(NAMES.values())
CPU = ("CPUExecutionProvider", {})


def names(tried: list[Any]) -> list[list[str]]:
    return [[name.removesuffix("ExecutionProvider") for name, _ in each] for each in tried]


@pytest.mark.parametrize(
    ("order", "available", "tried"),
    [
        (["cuda", "cpu"], EVERYTHING, [["CUDA", "CPU"], ["CPU"]]),
        (["tensorrt", "cuda", "cpu"], EVERYTHING, [["Tensorrt", "CUDA", "CPU"], ["CUDA", "CPU"], ["CPU"]]),
        (["tensorrt", "cuda", "cpu"], EVERYTHING[1:], [["CUDA", "CPU"], ["CPU"]]),
        (["cuda", "cpu"], ["CPUExecutionProvider", "AzureExecutionProvider"], [["CPU"]]),
        (["cpu"], EVERYTHING, [["CPU"]]),
        (["cuda"], EVERYTHING, [["CUDA", "CPU"], ["CPU"]]),
        ([], EVERYTHING, [["CPU"]]),
    ],
)
def test_providers_are_tried_in_the_order_of_the_setting_and_the_cpu_last(
    order: Any, available: list[str], tried: list[list[str]]
) -> None:
    assert names(attempts(order, available, 0)) == tried


def test_cuda_provider_gets_its_device_and_disables_tf32() -> None:
    assert attempts(["cuda"], EVERYTHING, 3)[0] == [("CUDAExecutionProvider", {"device_id": "3", "use_tf32": "0"}), CPU]


def test_model_goes_to_its_configured_gpu_or_the_least_loaded() -> None:
    loaded = {0: 500, 1: 100, 2: 300}
    assert place("vessels", {"vessels": 2}, loaded, 3) == 2
    assert place("cells", {"vessels": 2}, loaded, 3) == 1
    assert place("vessels", {"vessels": 7}, loaded, 3) == 1, "there is no GPU 7"
    assert place("cells", {}, {}, 3) == 0 and place("cells", {}, {0: 1}, 3) == 1 and place("cells", {}, {}, 0) == 0


def test_only_visible_gpus_are_counted(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus({}, tmp_path) == 2
    assert [count_gpus({"CUDA_VISIBLE_DEVICES": text}, tmp_path) for text in ("", "-1", "1", "0,1,2")] == [0, 0, 1, 3]


class Session:
    """Stands for a session of ONNX Runtime on a machine whose providers work or not."""

    broken: tuple[str, ...] = ()
    opened: ClassVar[list[Any]] = []

    def __init__(self, content: bytes, options: Any, providers: list[Any]):
        if providers[0][0] in self.broken:
            raise RuntimeError(f"{providers[0][0]} has no driver")
        self.providers = providers
        type(self).opened.append(providers)

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers]


@pytest.mark.parametrize(
    ("broken", "first"),
    [
        ((), "Tensorrt"),
        (("TensorrtExecutionProvider",), "CUDA"),
        (("TensorrtExecutionProvider", "CUDAExecutionProvider"), "CPU"),
    ],
)
def test_failing_provider_is_skipped(monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...], first: str) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: EVERYTHING)
    monkeypatch.setattr(onnxruntime, "InferenceSession", type("Here", (Session,), {"broken": broken, "opened": []}))
    assert (
        runtime.open_session(b"", 1, ["tensorrt", "cuda", "cpu"], 1).get_providers()[0] == first + "ExecutionProvider"
    )


def test_network_that_no_provider_opens_is_refused() -> None:
    with pytest.raises(ModelSignature, match="cannot open this network"):
        runtime.open_session(b"junk", 1, ["cuda", "cpu"])


def test_networks_are_balanced_over_gpus_by_size(
    database: Any, blobs: Any, settings: Settings, project_id: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.records import register

    monkeypatch.setattr(registry, "count_gpus", lambda: 2)
    made: dict[str, int] = {}

    class Network:
        def __init__(self, content: bytes, manifest: Any, load: Any, *, threads: Any, order: Any, device: int):
            self.bytes, self.device, self.provider, self.extra = len(content), device, "CUDAExecutionProvider", None
            self.threads, self.batch = None, 1

        def warm(self, *, batch_most: int) -> None:
            pass

    monkeypatch.setattr(runtime, "Network", Network)
    opened = registry.Registry(database, blobs, settings.model_copy(update={"gpu_placement": {"pinned": 0}}))
    for name, content in (
        ("large", networks.pyramid(width=16)),
        ("small", networks.blur()),
        ("next", networks.blur(gain=3)),
        ("pinned", networks.blur(gain=2)),
    ):
        version = register(database, blobs, project_id, name, content)
        opened.get(project_id, version)
        made[name] = opened.network(version.id).device  # type: ignore[union-attr,assignment]
    opened.close()
    assert made == {"large": 0, "small": 1, "next": 1, "pinned": 0}


def test_model_card_names_the_provider_of_a_loaded_network(gateway: Gateway, registered: Any, predict: Any) -> None:
    registered("blur", networks.blur())
    address = "/v1/models/blur/versions/1"
    before = gateway.ask("GET", address).json()
    assert predict("blur", noise_png(20, 24)).status_code == 200
    after = gateway.ask("GET", address).json()
    assert [before[name] for name in ("provider", "threads", "batch")] == [None] * 3
    assert after["provider"] == "CPUExecutionProvider" and after["threads"] >= 1 and after["batch"] >= 1
