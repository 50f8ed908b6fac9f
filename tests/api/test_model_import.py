"""Import of foreign ONNX networks: what is accepted, what is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pillow
from sqlalchemy import select

from app.admission.networks import admitted, bundled
from app.errors import ExternalDataRefused, Invalid, ModelRejected, ModelSignature, Problem
from app.imaging import decode, encode_png
from app.serving import trial
from app.store.tables import AuditLine, Model
from tests.gateway import Gateway, form, told
from tests.images import noise_png
from tests.serving import networks
from tests.serving.networks import FACTS

VERSIONS = "/v1/models/foreign/versions"


def archive(files: dict[str, Any]) -> bytes:
    """A zip archive; values that are no bytes become JSON."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(
                zipfile.ZipInfo(name), content if isinstance(content, bytes) else json.dumps(content)
            )  # of no date: the same files are the same bytes
    return file.getvalue()


def package(content: bytes, **facts: Any) -> bytes:
    """model.onnx with a small manifest; a fact that is None is left out."""
    return archive(
        {
            "model.onnx": content,
            "manifest.json": {name: value for name, value in (FACTS | facts).items() if value is not None},
        }
    )


def send(gateway: Gateway, body: bytes, who: str = "engineer", address: str = VERSIONS, **headers: str) -> Any:
    return gateway.ask("POST", address, who, content=body, headers={"Content-Type": "application/zip"} | headers)


def model_of(
    nodes: list[Any],
    tensors: tuple[Any, ...] = (),
    *,
    shape: tuple[Any, ...] = ("n", 1, "h", "w"),
    elem: int = TensorProto.FLOAT,
    opset: int = 18,
    **more: Any,
) -> onnx.ModelProto:
    """A network of these nodes from `image` to `probability`; nothing checks it."""
    ends = [helper.make_tensor_value_info(name, elem, shape) for name in ("image", "probability")]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **more)


def external(name: str = "weight", location: str = "secret.bin", **facts: str) -> TensorProto:
    """A tensor whose numbers are said to lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": location} | facts).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def identity(*more: Any) -> list[Any]:
    return [*more, helper.make_node("Sigmoid", ["image"], ["probability"])]


def branch(tensor: TensorProto) -> Any:
    return helper.make_graph(
        [helper.make_node("Identity", [tensor.name], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
        [tensor],
    )


# B31: external data ---------------------------------------------------------------------------------------------------

LOCATIONS = {
    "beside": {},
    "above": {"location": "../secret"},
    "absolute": {"location": "/etc/passwd"},
    "in memory": {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"},
    "class": {"__class__": "os.system"},
    "negative": {"length": "-1"},
    "far": {"offset": "9223372036854775807"},
}
SPARSE = onnx.SparseTensorProto(
    values=external("sparse"), indices=numpy_helper.from_array(np.array([0]), "i"), dims=[4]
)
PLACES = {
    "subgraph": model_of(
        identity(
            helper.make_node("If", ["image"], ["x"], then_branch=branch(external()), else_branch=branch(external()))
        )
    ),
    "attribute": model_of(identity(helper.make_node("Constant", [], ["x"], value=external()))),
    "list attribute": model_of(identity(helper.make_node("Constant", [], ["x"], several=[external(), external()]))),
    "sparse attribute": model_of(identity(helper.make_node("Constant", [], ["x"], sparse_value=SPARSE))),
    "function": model_of(
        identity(),
        functions=[
            helper.make_function(
                "",
                "f",
                [],
                ["x"],
                [helper.make_node("Constant", [], ["x"], value=external())],
                [helper.make_opsetid("", 18)],
            )
        ],
    ),
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_external_data_is_refused_whatever_it_points_to(location: str) -> None:
    with pytest.raises(ExternalDataRefused):
        trial.walk(model_of(identity(), (external(**LOCATIONS[location]),)))


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_in_every_graph_part(place: str) -> None:
    with pytest.raises(ExternalDataRefused):
        trial.walk(PLACES[place])


def test_external_data_is_found_in_sparse_weights_and_without_its_mark() -> None:
    model = model_of(identity())
    model.graph.sparse_initializer.append(SPARSE)
    with pytest.raises(ExternalDataRefused):
        trial.walk(model)
    unmarked = external()
    unmarked.data_location = TensorProto.DEFAULT
    with pytest.raises(ExternalDataRefused):
        trial.walk(model_of(identity(), (unmarked,)))


# B32: what is not run here --------------------------------------------------------------------------------------------


def test_only_listed_operators_of_the_standard_domain_pass() -> None:
    wrong = {
        "Loop": helper.make_node(
            "Loop", ["", ""], ["x"], body=branch(numpy_helper.from_array(np.zeros(1, np.float32), "w"))
        ),
        "RandomNormal": helper.make_node("RandomNormal", [], ["x"], shape=[1]),
        "NonZero": helper.make_node("NonZero", ["image"], ["x"]),
        "com.microsoft": helper.make_node("FusedConv", ["image"], ["x"], domain="com.microsoft"),
    }
    for named, node in wrong.items():
        with pytest.raises(ModelRejected, match=named):
            trial.walk(model_of(identity(node)))
    trial.walk(model_of(identity()))


def test_every_listed_operator_exists() -> None:
    assert {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} >= trial.OPERATORS - {
        "Upsample"
    }


def test_nested_control_flow_is_refused() -> None:
    graph = branch(numpy_helper.from_array(np.zeros(1, np.float32), "w"))
    for _ in range(12):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["out"], then_branch=graph, else_branch=graph)],
            "branch",
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
        )
        if graph.ByteSize() > 2**20:
            break
    with pytest.raises(ModelRejected, match="If"):
        trial.walk(model_of([*graph.node, *identity()]))


@pytest.mark.parametrize("dims", [[2**62], [2**40, 2**40], [-1, 4], [65536, 65536]])
def test_tensor_with_oversized_shape_is_refused(dims: list[int]) -> None:
    with pytest.raises(ModelRejected, match="declares sides"):
        trial.walk(model_of(identity(), (TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=dims),)))


def test_network_with_too_many_nodes_is_refused() -> None:
    node = helper.make_node("Relu", ["image"], ["x"])
    with pytest.raises(ModelRejected, match="more than 20000 nodes"):
        trial.walk(model_of([node] * (trial.MOST_NODES + 1)))


@pytest.mark.parametrize("opset", [0, 6, 999])
def test_unknown_opset_is_refused(opset: int) -> None:
    with pytest.raises(ModelRejected, match=r"imports ai\.onnx"):
        trial.judge(model_of(identity(), opset=opset).SerializeToString(), FACTS, "manifest.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", b"\xff" * 64, b"\0" * 1000, networks.blur()[:-40], b"\x0a" * 10_000],
    ids=["empty", "one byte", "noise", "zeros", "cut short", "nested"],
)
def test_file_that_is_not_a_network_is_refused(content: bytes) -> None:
    with pytest.raises(ModelRejected):
        trial.judge(content, FACTS, "manifest.json")


def tried(make_settings: Any, body: bytes, **settings: Any) -> dict[str, Any]:
    """The manifest of an archive after its trial in a child."""
    with admitted(io.BytesIO(body), make_settings(**settings)) as network:
        assert network.file.read()
        return network.manifest


def test_network_that_allocates_16_gb_ends_in_its_child_process(make_settings: Any) -> None:
    huge = numpy_helper.from_array(np.array([4_000_000_000], np.int64), "sides")
    nodes = [
        helper.make_node("ConstantOfShape", ["sides"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["probability"]),
    ]
    with pytest.raises(ModelRejected):
        tried(make_settings, package(model_of(nodes, (huge,)).SerializeToString()))


def test_network_that_runs_too_long_ends_in_its_child_process(make_settings: Any) -> None:
    sides = numpy_helper.from_array(np.array([4000, 4000], np.int64), "sides")
    chain = [helper.make_node("MatMul", ["m0", f"m{step}"], [f"m{step + 1}"]) for step in range(200)]
    nodes = [
        helper.make_node("ConstantOfShape", ["sides"], ["m0"]),
        *chain,
        helper.make_node("ReduceSum", ["m200"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["probability"]),
    ]
    with pytest.raises(ModelRejected, match="more than 1 s of processor"):
        tried(make_settings, package(model_of(nodes, (sides,)).SerializeToString()), import_cpu_s=1)


def test_bytes_that_another_format_would_read_differently_are_read_as_onnx(make_settings: Any) -> None:
    model = onnx.ModelProto.FromString(networks.blur())
    # Field 100 is unknown to ONNX, so its reader skips it; ORTM at the fifth byte is the mark of ONNX Runtime's own
    # format.
    disguised = b"\xa2\x06\x05\0ORTM" + model.SerializeToString()
    assert disguised[4:8] == b"ORTM"
    assert tried(make_settings, package(disguised))["input"] == "image"


# B33: not what the manifest says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (model_of(identity()), {"input": "picture"}),
        (model_of(identity()), {"output": "mask"}),
        (model_of(identity(), shape=("n", 1, "d", "h", "w")), {}),
        (model_of(identity(), elem=TensorProto.DOUBLE), {}),
        (model_of(identity(), shape=("n", 1, 64, 64)), {"sides": "any"}),
        (model_of(identity(), shape=(1, 1, "h", "w")), {"batch": 2}),
        (model_of(identity()), {"channels": 3}),
        (model_of(identity()), {"classes": ["background", "artery", "vein"], "activation": "softmax"}),
        (model_of([helper.make_node("MaxPool", ["image"], ["probability"], kernel_shape=[2, 2], strides=[2, 2])]), {}),
        (model_of([helper.make_node("Add", ["image", "image"], ["probability"])]), {}),
    ],
    ids=[
        "input name",
        "output name",
        "rank",
        "dtype",
        "other sides",
        "other batch",
        "channels",
        "classes",
        "halved",
        "logits",
    ],
)
def test_a_network_that_is_not_what_its_manifest_says_is_refused(model: onnx.ModelProto, facts: dict[str, Any]) -> None:
    with pytest.raises(ModelSignature):
        trial.judge(model.SerializeToString(), FACTS | facts, "manifest.json")


@pytest.mark.parametrize(
    ("shape", "facts", "found"),
    [
        ((1, 1, 64, 96), {}, (1, "tile", [64, 96])),
        (("n", 1, 64, 96), {"multiple": None}, (None, "tile", [64, 96])),
        ((4, 1, "h", "w"), {}, (4, "any", [512, 512])),
        ((1, 1, 64, "w"), {"tile": [64, 128]}, (1, "tile", [64, 128])),
    ],
    ids=["all", "sides", "batch", "one side"],
)
def test_what_the_file_fixes_is_found(shape: Any, facts: dict[str, Any], found: tuple[Any, ...]) -> None:
    told = {name: value for name, value in (FACTS | facts).items() if value is not None}
    manifest = trial.judge(networks.fixed(networks.blur(), shape), told, "manifest.json")
    assert (manifest.batch, manifest.sides, manifest.tile) == found


def test_another_tile_than_the_fixed_sides_is_refused_naming_both() -> None:
    with pytest.raises(Invalid, match="64 x 96 only and the manifest names the tile 128 x 128"):
        trial.judge(networks.fixed(networks.blur(), (1, 1, 64, 96)), FACTS | {"tile": [128, 128]}, "manifest.json")


@pytest.mark.parametrize("size", [(150, 200), (64, 64), (30, 40), (20, 300)], ids=str)
def test_network_of_fixed_sides_and_batch_predicts_images_of_any_size(gateway: Gateway, size: tuple[int, int]) -> None:
    """As one that takes any size, on the image filled up by its last pixels to the sides of the file."""
    free, image = networks.blur(), noise_png(*size)
    pixels = np.asarray(Pillow.open(io.BytesIO(image)))
    filled = np.pad(pixels, [(0, max(0, 64 - side)) for side in size], mode="edge")
    figures = {"kind": "dataset", "mean": [float(pixels.mean())], "std": [float(pixels.std())]}
    masks = []
    for content, sent in ((networks.fixed(free, (3, 1, 64, 64)), image), (free, encode_png(filled))):
        made = send(gateway, package(content, receptive_field=3, scaling=figures))
        assert made.status_code == 201, made.text
        answer = gateway.predict(f"foreign:{made.json()['version']}", sent, accept="image/png")
        assert answer.status_code == 200, answer.text
        masks.append(np.asarray(Pillow.open(io.BytesIO(answer.content)))[: size[0], : size[1]])
    np.testing.assert_array_equal(*masks)
    assert 0.1 < (masks[0] > 0).mean() < 0.9


def test_network_must_state_the_multiple_it_needs() -> None:
    assert trial.judge(networks.pyramid(), FACTS | {"multiple": 2}, "manifest.json").tile == [512, 512]
    with pytest.raises(ModelRejected, match="fails on an image of 65 x 64"):
        trial.judge(networks.pyramid(), FACTS, "manifest.json")


def test_manifest_is_completed_from_the_file_and_missing_fields_are_named() -> None:
    manifest = trial.judge(networks.blur(), FACTS, "manifest.json")
    assert (manifest.input, manifest.output, manifest.opset, manifest.answers, manifest.threshold) == (
        "image",
        "probability",
        18,
        "probability",
        0.5,
    )
    with pytest.raises(Invalid, match=r"manifest\.json does not say channels, scaling") as refusal:
        trial.judge(
            networks.blur(),
            {name: value for name, value in FACTS.items() if name not in ("scaling", "channels")},
            "manifest.json",
        )
    assert [error["pointer"] for error in refusal.value.errors] == ["/manifest/channels", "/manifest/scaling"]
    for wrong in ({"treshold": 0.4}, {"multiple": 0}, {"onnx_sha256": "0" * 64}, {"tile": [512]}):
        with pytest.raises(Invalid):
            trial.judge(networks.blur(), FACTS | wrong, "manifest.json")


def test_deviation_of_zero_is_refused() -> None:
    scaling = {"kind": "dataset", "mean": [0.0], "std": [0.0]}
    with pytest.raises(Invalid, match="deviation 0") as refusal:
        trial.judge(networks.blur(), FACTS | {"scaling": scaling}, "manifest.json")
    assert [error["pointer"] for error in refusal.value.errors] == ["/manifest/scaling/std/0"]


def test_manifest_with_a_byte_order_mark_is_read(gateway: Gateway) -> None:
    marked = b"\xef\xbb\xbf" + json.dumps(FACTS).encode()
    assert send(gateway, archive({"model.onnx": networks.blur(), "manifest.json": marked})).status_code == 201


def test_network_with_nan_output_is_refused() -> None:
    with pytest.raises(ModelRejected, match="no finite numbers"):
        trial.judge(networks.not_a_number(), FACTS, "manifest.json")


# MONAI bundles --------------------------------------------------------------------------------------------------------


def metadata(**changes: Any) -> dict[str, Any]:
    """The part of a bundle's metadata that is read."""
    image = {
        "type": "image",
        "format": "magnitude",
        "num_channels": 1,
        "spatial_shape": ["*", "16*n"],
        "dtype": "float32",
        "value_range": [0, 1],
        "channel_def": {"0": "image"},
    }
    answer = {
        "type": "image",
        "format": "segmentation",
        "num_channels": 2,
        "spatial_shape": ["*", "16*n"],
        "value_range": [0, 1],
        "channel_def": {"0": "background", "1": "spleen"},
    }
    return {
        "version": "0.1.0",
        "network_data_format": {
            "inputs": {"image": image | changes.get("image", {})},
            "outputs": {"pred": answer | changes.get("answer", {})},
        },
    }


def test_manifest_is_read_from_bundle_metadata() -> None:
    assert bundled(metadata()) == {
        "channels": 1,
        "dimensions": 2,
        "multiple": 16,
        "classes": ["background", "spleen"],
        "activation": "softmax",
    }
    single = bundled(
        metadata(answer={"num_channels": 1, "channel_def": {"0": "spleen"}}, image={"spatial_shape": [96, 96, 96]})
    )
    assert single == {
        "channels": 1,
        "dimensions": 3,
        "multiple": 96,
        "classes": ["background", "spleen"],
        "activation": "sigmoid",
    }
    assert "multiple" not in bundled(metadata(image={"spatial_shape": ["2**p*n", "*"]}))
    with pytest.raises(Invalid, match="exactly one image in"):
        bundled({"network_data_format": {"inputs": {}, "outputs": {}}})


def test_bundle_with_logits_is_served_as_probabilities(gateway: Gateway, registered: Any, predict: Any) -> None:
    plain = onnx.ModelProto.FromString(networks.bands(classes=2))
    logits = onnx.ModelProto.FromString(networks.bands(classes=2))
    del logits.graph.node[1]
    logits.graph.node[0].output[0] = "probability"
    registered("plain", plain.SerializeToString(), activation="softmax", classes=("background", "spleen"))
    files = {
        "bundle/configs/metadata.json": metadata(),
        "bundle/models/model.onnx": logits.SerializeToString(),
        "bundle/models/model.pt": b"never read",
        "bundle/docs/README.md": b"x",
    }
    refused = send(gateway, archive(files))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/manifest/answers")
    answer = send(
        gateway, archive(files | {"bundle/manifest.json": {"answers": "logits", "scaling": {"kind": "image"}}})
    )
    assert answer.status_code == 201, answer.text
    ours, theirs = (
        decode(predict(name, noise_png(40, 56), accept="image/tiff").content, gateway.settings).pixels
        for name in ("plain", "foreign")
    )
    assert np.allclose(ours, theirs, atol=1e-6, rtol=0) and np.ptp(theirs) > 0.5


def test_activation_of_the_manifest_is_applied_to_logits() -> None:
    from app.serving.contract import Manifest
    from app.serving.runtime import probabilities

    answer = np.array([-1000, -3, 0, 3, 1000], np.float32).reshape(1, 1, 1, 5)
    single = Manifest.model_validate(networks.manifest(b"", answers="logits"))
    assert np.allclose(
        probabilities(answer, single).ravel(), [0, 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-3)), 1], atol=1e-7
    )
    several = Manifest.model_validate(networks.manifest(b"", answers="logits", classes=("a", "b", "c")))
    spread = probabilities(np.array([1000, 0, 1000], np.float32).reshape(1, 3, 1, 1), several)
    assert np.allclose(spread.ravel(), [0.5, 0, 0.5])


# Over HTTP ------------------------------------------------------------------------------------------------------------


class Evil:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("unpickled", "w"))


OTHER_FORMATS = {
    "pt": archive({"archive/data.pkl": pickle.dumps(Evil()), "archive/version": b"3"}),
    "pkl": pickle.dumps(Evil()),
    "h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
    "mar": archive({"MAR-INF/MANIFEST.json": {}, "model.pt": b"x"}),
    "zip without a network": archive({"manifest.json": FACTS}),
    "bare onnx": networks.blur(),
    "safetensors": (16).to_bytes(8, "little") + b'{"__metadata__":{}}',
    "text": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_pickled_formats_are_refused_without_unpickling(
    gateway: Gateway, kind: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = gateway.count_everything()
    assert told(send(gateway, OTHER_FORMATS[kind])) == (415, "unsupported_model_format")
    assert not list(tmp_path.iterdir()) and gateway.count_everything() == before


def test_an_imported_network_is_served_like_any_other(gateway: Gateway, registered: Any, predict: Any) -> None:
    registered("ours", networks.pyramid(), multiple=2)
    kept = {
        name: gateway.ask("GET", f"/v1/models/ours/versions/1/{name}").content for name in ("onnx", "manifest.json")
    }
    answer = send(gateway, archive({"model.onnx": kept["onnx"], "manifest.json": kept["manifest.json"]}))
    card = answer.json()
    assert (answer.status_code, answer.headers["location"], card["ref"], card["source"]) == (
        201,
        f"{VERSIONS}/1",
        "foreign:1",
        "imported",
    )
    assert (card["job"], card["dataset"], card["metrics"], card["safetensors"], card["manifest"]["verification"]) == (
        None,
        None,
        {},
        None,
        None,
    )
    assert gateway.ask("GET", card["onnx"]["href"]).content == networks.pyramid()
    image = noise_png(61, 83)
    for accept in ("image/png", "image/tiff"):
        assert predict("ours", image, accept=accept).content == predict("foreign:1", image, accept=accept).content
    page = gateway.ask("GET", "/models/foreign/versions/1").text
    assert "trained elsewhere" in page and "Not verified" in page


def test_repeated_import_is_the_same_version_and_an_idempotency_key_replays(gateway: Gateway) -> None:
    first = send(gateway, package(networks.blur()), **{"Idempotency-Key": "once"})
    replay = send(gateway, package(networks.blur()), **{"Idempotency-Key": "once"})
    same, other = send(gateway, package(networks.blur())), send(gateway, package(networks.blur(), threshold=0.4))
    assert [answer.status_code for answer in (first, replay, same, other)] == [201, 201, 200, 201]
    assert replay.headers["idempotency-replayed"] == "true" and same.json()["id"] == first.json()["id"]
    assert (other.json()["version"], other.json()["manifest"]["threshold"]) == (2, 0.4)
    with gateway.database.read() as session:
        lines = session.scalars(
            select(AuditLine.object)
            .where(AuditLine.project_id == gateway.project_id, AuditLine.what == "model.import")
            .order_by(AuditLine.id)
        ).all()
    assert lines == ["foreign:1", "foreign:2"]


def test_a_form_carries_an_archive_too(gateway: Gateway) -> None:
    headers, body = form([('form-data; name="file"; filename="blur.zip"', package(networks.blur()))])
    assert gateway.ask("POST", VERSIONS, "engineer", content=body, headers=headers).status_code == 201


def test_a_refused_network_leaves_nothing(gateway: Gateway) -> None:
    before = gateway.count_everything()
    bad = {
        "external_data_refused": package(model_of(identity(), (external(),)).SerializeToString()),
        "model_rejected": package(b"junk"),
        "model_signature": package(networks.blur(), channels=3),
        "invalid": package(networks.blur(), scaling=None),
        "bad_archive_entry": archive({"../model.onnx": networks.blur(), "manifest.json": FACTS}),
    }
    for code, body in bad.items():
        assert told(send(gateway, body)) == (422, code)
    twice = archive({"model.onnx": networks.blur(), "manifest.json": b'{"channels": 1, "channels": 2}'})
    assert told(send(gateway, twice)) == (400, "invalid_json")
    assert gateway.count_everything() == before
    with gateway.database.read() as session:
        assert session.scalar(select(Model).where(Model.project_id == gateway.project_id)) is None


def test_metrics_claimed_by_a_manifest_pass_no_gate(gateway: Gateway) -> None:
    send(gateway, package(networks.blur(), metrics={"dice": 1.0}))
    answer = gateway.ask(
        "PUT", "/v1/models/foreign/aliases/champion", "admin", json={"version": 1, "gate": {"min_dice": 0.5}}
    )
    assert answer.status_code == 409


def test_network_at_the_size_limit_is_accepted_and_one_byte_more_refused(make_settings: Any) -> None:
    content = networks.blur()
    assert tried(make_settings, package(content), max_model_bytes=len(content))
    with pytest.raises(Problem) as refusal:
        tried(make_settings, package(content), max_model_bytes=len(content) - 1)
    assert refusal.value.code == "too_large"
