"""The client against a running service, blocking and with asyncio: each test tells both."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from app import imaging
from app.store import datasets
from tests.images import noise, pairs, png
from tests.records import submit, train_spec
from tests.services import ROOT
from tests.serving import networks
from toposerve_client import Forbidden, JobEnded, NotFound, Refused, Table, TimedOut, Unreachable, files

RING = np.zeros((40, 40), np.uint8)
RING[8:32, 8:32] = 200
RING[14:26, 14:26] = 0
RING[8:14, 20] = 40
"""A ring that a gap of one column opens at the top."""
TRAIN = {"kind": "train", "dataset": "bars@1", "model": "bars", "network": {"channels": [4, 8]}, "patch": [32, 32]}


@pytest.fixture
def folder(tmp_path):
    """A folder of labelled images."""
    for name, content in pairs().items():
        path = tmp_path / "bars" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "bars"


@pytest.fixture
def bars(client, folder):
    """A dataset version."""
    return client.datasets.upload("bars", folder, label_map={"bar": 255})


# Predictions --------------------------------------------------------------------------------------------------------


def test_prediction_of_an_array_is_its_mask_and_its_topology(client):
    mask, report = client.predict("plain", RING)
    np.testing.assert_array_equal(mask, np.where(RING > 127, 255, 0))
    assert (report["model"], report["topology"][0]["beta0"], report["topology"][0]["beta1"]) == ("plain:1", 1, 0)


def test_array_path_and_bytes_of_an_image_give_the_same_mask(client, tmp_path):
    path = tmp_path / "ring.png"
    path.write_bytes(png(RING))
    expected = client.predict("plain", RING).mask
    for image in (path, str(path), png(RING)):
        np.testing.assert_array_equal(client.predict("plain", image).mask, expected)


def test_volume_comes_back_as_planes_rows_and_columns_in_its_spacing(client):
    volume = noise(6, 20, 30)
    mask, report = client.predict("cube", volume, spacing_mm=(2.5, 0.7, 0.5))
    assert mask.shape == volume.shape and set(np.unique(mask)) == {0, 255}
    assert report["spacing_mm"] == pytest.approx([2.5, 0.7, 0.5]) and report["topology"][0]["length_unit"] == "mm"


def test_every_option_of_a_prediction_reaches_the_service(client):
    assert client.predict("plain", RING, topology=False).report["topology"] is None
    assert client.predict("plain", RING, threshold=0.1).report["topology"][0]["beta1"] == 1
    assert client.predict("plain", RING, margins=True).report["topology"][0]["margins"]["features"]
    mask, report = client.predict("plain", RING, expect={"vessel": {"beta1": 1}}, repair=True)
    assert mask[8:14, 20].any() and report["repair"]["certified"] and report["expectation"]["satisfied"]
    assert client.predict("plain", RING, expect="beta1:1").report["expectation"]["satisfied"] is False
    with pytest.raises(Refused, match="0 loops; 1 was expected") as refused:
        client.predict("plain", RING, expect="beta1:1", strict=True)
    assert refused.value.code == "expectation_violated"
    assert client.predict("plain", RING, repair=True, repair_margin=0.2).report["repair"]["certified"]
    probability = client.predict("plain", RING, artifact="probability").mask
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability, RING / np.float32(255), atol=1e-6)
    assert 0 < client.predict("plain", RING, artifact="skeleton").mask.astype(bool).sum() < (RING > 127).sum() / 3
    with pytest.raises(Refused, match="int8"):
        client.predict("plain", RING, variant="int8")


def test_file_of_a_prediction_is_what_curl_gets(client, project):
    report, content, media_type = client.predict_file("plain", png(RING), topology=False)
    assert content == project.predict("plain", png(RING)).content and media_type == "image/png"
    assert report["topology"] is None


def test_stored_prediction_is_found_measured_and_edited(client, project, tmp_path):
    report = client.predict("plain", RING, store=True).report
    np.testing.assert_array_equal(client.predictions.mask(report), np.where(RING > 127, 255, 0))
    assert [each["id"] for each in client.predictions.list(model="plain:1")] == [report["id"]]
    assert client.predictions.get(report["id"])["measurements"] == []
    truth = RING > 0
    (measured,) = client.references.set(report, truth.astype(int) * 255)["measurements"]
    assert measured["beta1_error"] == 1 and 0.9 < measured["dice"] < 1
    edit = client.edits.make(report, "connect", at=(10, 19), to=np.array([10, 21]))
    assert edit["before"]["vessel"]["beta1"] == 0 and edit["after"]["vessel"]["beta1"] == 1
    assert (client.edits.mask(report) != client.predictions.mask(report)).sum() == edit["pixels"]
    assert [each["id"] for each in client.edits.list(report)] == [edit["id"]]
    client.edits.undo(report, edit)
    np.testing.assert_array_equal(client.edits.mask(report), client.predictions.mask(report))
    saved = client.predictions.save(report, "skeleton", tmp_path / "skeleton.png")
    assert imaging.decode_mask(saved.read_bytes(), project.settings).any()
    with pytest.raises(ValueError, match="no bones of this prediction; it has mask"):
        client.predictions.save(report, "bones", tmp_path / "bones.png")
    with pytest.raises(ValueError, match="store=True"):
        client.edits.make(client.predict("plain", RING).report, "cut", at=(10, 10))


def test_mask_is_analysed_alone_and_against_a_reference(client, tmp_path):
    mask, truth = RING > 127, tmp_path / "truth.png"
    truth.write_bytes(png(RING > 0))
    assert client.analyse(mask)["topology"]["beta1"] == 0
    against = client.analyse(mask.astype(np.int64), truth, threshold=0.0)["comparison"]
    assert against["metrics"]["beta1_error"] == 1 and [error["kind"] for error in against["errors"]] == ["break"]


def test_images_are_stored_once_named_saved_and_deleted(client, tmp_path):
    image = client.images.upload(RING, name="ring.png")
    assert client.images.upload(RING)["id"] == image["id"] and client.images.get(image)["name"] == "ring.png"
    assert client.images.save(image, tmp_path / "ring.png").read_bytes() == files.encoded(RING)
    assert [each["id"] for each in client.images.list()] == [image["id"]]
    client.images.delete(image)
    with pytest.raises(NotFound):
        client.images.save(image, tmp_path / "gone.png")
    assert [path.name for path in tmp_path.iterdir()] == ["ring.png"]


# Datasets and jobs --------------------------------------------------------------------------------------------------


def test_dataset_comes_from_an_archive_a_folder_or_arrays(client, bars, folder, tmp_path):
    assert (bars["version"], bars["statistics"]["pairs"], bars["classes"]) == (1, 4, ["background", "bar"])
    archive = tmp_path / "bars.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png"))[:2] + sorted(folder.rglob("*.png"))[4:6]:
            file.write(path, path.relative_to(folder))
    with pytest.raises(Refused) as refused:
        client.datasets.upload("bars", archive)
    assert refused.value.status == 409
    assert client.datasets.upload("bars", archive, new_version=True)["version"] == 2
    arrays = [(RING, RING > 127), (RING.T.copy(), (RING.T > 127).astype(int))]
    made = client.datasets.upload("rings", arrays, label_map={"ring": [1, 255]})
    assert made["statistics"]["pairs"] == 2 and made["classes"] == ["background", "ring"]
    assert {each["name"] for each in client.datasets.list()} == {"bars", "rings"}
    assert [each["version"] for each in client.datasets.versions("bars")] == [2, 1]
    assert len(list(client.datasets.items("bars", 1))) == 4
    client.datasets.delete("bars", 2)
    assert client.datasets.get("bars", 1)["version"] == client.datasets.get("bars")["latest"]["version"] == 1
    with pytest.raises(ValueError, match="holds no files in images/, masks/"):
        client.datasets.upload("none", folder / "images")


def test_job_is_waited_for_with_its_events_and_ends_in_a_table(client, bars, capfd):
    events = []
    job = client.jobs.submit(TRAIN | {"steps": 6})
    ended = client.jobs.wait(job, progress="bars", on_event=events.append)
    assert ended["state"] == "succeeded" and ended["result"]["version"] == 1
    assert {"state", "progress"} <= {event.name for event in events}
    assert [event.number for event in events] == sorted({event.number for event in events})
    said = capfd.readouterr().err
    assert "bars queued\n" in said and "% train  step" in said and said.endswith("bars succeeded\n")
    assert list(client.jobs.events(job)) == events
    assert [event.number for event in client.jobs.events(job, after=events[-3].number)] == [
        event.number for event in events[-2:]
    ]
    table = client.jobs.table(job)
    assert table[0]["model"] == "bars:1" and "dice" in table.columns and "dice" in str(table)
    assert "state" in client.jobs.log(job)


def test_predictions_of_a_dataset_end_in_a_table_and_an_archive(client, bars, tmp_path):
    job = client.jobs.wait(client.jobs.submit({"kind": "predict", "model": "plain", "dataset": "bars@1"}))
    table = client.jobs.table(job)
    assert len(table) == 4 and isinstance(table, Table) and isinstance(table[0]["beta0"], int)
    assert table[0]["expectation"] is None and table[0]["class"] == "vessel"
    with zipfile.ZipFile(client.jobs.save_masks(job, tmp_path / "masks.zip")) as masks:
        assert {row["mask"] for row in table} <= set(masks.namelist())
    assert len(list(client.predictions.list(job=job))) == 4


def test_two_versions_are_compared_over_the_images_of_both(client, bars, project):
    for network in (networks.through(), networks.blur()):
        project.register("bars", network, classes=("background", "bar"))
    assert client.models.compare("bars:1", "bars:2") == []
    for model in ("bars:1", "bars:2"):
        job = client.jobs.wait(client.jobs.submit({"kind": "evaluate", "model": model, "dataset": "bars@1"}))
        (means,) = client.jobs.table(job)
        assert means["model"] == model and means["dice"] == job["result"]["means"]["dice"]
    rows = {row["metric"]: row for row in client.models.compare("bars:1", "bars:2")}
    assert rows["dice"]["images"] == 4
    assert rows["dice"]["difference"] == pytest.approx(rows["dice"]["bars:2"] - rows["dice"]["bars:1"])


def test_same_idempotency_key_is_the_same_job(client, bars):
    first, again = (client.jobs.submit(TRAIN | {"steps": 3}, idempotency_key="run-1") for _ in range(2))
    assert first["id"] == again["id"] and client.jobs.submit(TRAIN | {"steps": 3})["id"] != first["id"]
    with pytest.raises(Refused) as refused:
        client.jobs.submit(TRAIN | {"steps": 4}, idempotency_key="run-1")
    assert refused.value.code == "idempotency_key_reused"


def test_failed_and_cancelled_jobs_are_raised_with_their_reason(client, bars, project):
    with project.database.read() as session:
        version = datasets.require_version(session, datasets.require(session, project.project_id, "bars"), 1)
    behaviour = {"error_at": 2, "error": {"code": "diverged", "message": "The loss became infinite."}}
    failing = submit(project.database, project.project_id, train_spec(version, behaviour=behaviour))
    with pytest.raises(JobEnded) as ended:
        client.jobs.wait(str(failing.id))
    assert (ended.value.code, ended.value.job["state"]) == ("diverged", "failed")
    assert "The loss became infinite." in str(ended.value)
    slow = submit(project.database, project.project_id, train_spec(version, behaviour={"step_s": 0.5}))
    with pytest.raises(TimedOut):
        client.jobs.wait(str(slow.id), timeout_s=0.1)
    assert client.jobs.cancel(str(slow.id), keep=True)["state"] in ("cancelling", "interrupted")
    assert client.jobs.wait(str(slow.id), check=False)["state"] == "interrupted"
    assert client.jobs.resume(str(slow.id))["state"] == "queued"
    client.jobs.cancel(str(slow.id))
    with pytest.raises(JobEnded):
        client.jobs.wait(str(slow.id))
    assert str(slow.id) in {job["id"] for job in client.jobs.list(kind="train", state="cancelled")}


def test_every_page_of_a_list_is_walked(client):
    ids = {client.images.upload(noise(8, 8, seed=seed))["id"] for seed in range(55)}
    assert {image["id"] for image in client.images.list()} == ids


# Models -------------------------------------------------------------------------------------------------------------


def test_alias_moves_past_a_gate_and_has_a_history(connect, project):
    client = connect(project.url, project.keys["admin"])
    alias = client.aliases.move("plain", "champion", 1)
    assert alias["version"] == 1 and client.predict("plain@champion", RING).report["model"] == "plain:1"
    with pytest.raises(Refused) as gated:
        client.aliases.move("plain", "champion", 1, gate={"min_dice": 0.5})
    assert gated.value.status == 409
    with pytest.raises(Refused) as moved:
        client.aliases.move("plain", "champion", 1, if_match='"old"')
    assert moved.value.status == 412
    assert client.aliases.get("plain", "champion")["etag"] == alias["etag"]
    assert [each["alias"] for each in client.aliases.list("plain")] == ["champion"]
    client.aliases.remove("plain", "champion")
    assert [move["to_version"] for move in client.aliases.history("plain", "champion")] == [None, 1]


def test_network_is_saved_and_imported(client, tmp_path):
    card = client.models.get("plain", 1)
    onnx = client.models.save_onnx("plain", 1, tmp_path / "model.onnx")
    assert onnx.stat().st_size == card["onnx"]["bytes"]
    archive = io.BytesIO()
    manifest = '{"dimensions": 2, "channels": 1, "classes": ["background", "vessel"], "activation": "sigmoid",'
    manifest += ' "scaling": {"kind": "dataset", "mean": [0.0], "std": [1.0]}, "multiple": 1, "answers": "logits"}'
    with zipfile.ZipFile(archive, "w") as file:
        file.write(onnx, "model.onnx")
        file.writestr("manifest.json", manifest)
    assert client.models.upload("again", archive.getvalue())["ref"] == "again:1"
    assert {model["name"] for model in client.models.list()} == {"plain", "cube", "again"}
    assert [each["version"] for each in client.models.versions("again")] == [1]
    np.testing.assert_array_equal(client.predict("again", RING).mask > 0, RING > 0)  # sigmoid(0) is not above 0.5
    with pytest.raises(NotFound, match="weights"):
        client.models.save_weights("plain", 1, tmp_path / "weights.safetensors")


# Who asks, and whether anybody answers ------------------------------------------------------------------------------


def test_missing_or_insufficient_key_is_refused_with_the_reason(connect, project):
    with pytest.raises(Forbidden, match="Send a valid API key"):
        connect(project.url).images.get("01936f5e-7c00-7000-8000-000000000001")
    with pytest.raises(Forbidden, match="scope"):
        connect(project.url, project.keys["viewer"]).jobs.submit(TRAIN)


def test_unreachable_service_is_reported_after_the_retries(connect):
    with pytest.raises(Unreachable, match=r"No service answers at http://127\.0\.0\.1:9 "):
        connect("127.0.0.1:9", retries=1).models.get("plain")


def test_other_addresses_can_be_asked(client, connect, project):
    assert client.request("GET", "/readyz").json()["status"]
    admin = connect(project.url, project.keys["admin"])
    made = admin.request("POST", "/v1/keys", json={"name": "slicer", "role": "clinician"}).json()
    assert made["name"] == "slicer"


# As a package -------------------------------------------------------------------------------------------------------

TYPED = """
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any
from toposerve_client import AsyncClient, Client, Event, Prediction

def blocking(client: Client) -> None:
    prediction: Prediction = client.predict("m", "x.png", threshold=0.5)
    events: Iterator[Event] = client.jobs.events("id")
    version: dict[str, Any] = client.datasets.get("d", 1)

async def awaited(client: AsyncClient) -> None:
    prediction: Prediction = await client.predict("m", "x.png")
    events: AsyncIterator[Event] = client.jobs.events("id")
    later: Awaitable[dict[str, Any]] = client.jobs.get("id")
"""
WRONG = """
from toposerve_client import AsyncClient, Client
Client().predict("m")
Client().predict("m", "x.png", treshold=0.5)
mask, report = AsyncClient().predict("m", "x.png")
Client().jobs.wait("id", progress=[])
"""


def test_types_of_both_faces_are_known_to_a_checker(tmp_path):
    for name, text in (("right.py", TYPED), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    environment = {"MYPYPATH": str(ROOT / "client"), "PATH": ""}
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", f"--config-file={tmp_path / 'none.ini'}"]
    (tmp_path / "none.ini").write_text("[mypy]\n")
    command += ["right.py", "wrong.py"]
    checked = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in checked.stdout.splitlines() if not line.startswith(str(ROOT))]  # pandas has no types here
    wrong = [line.partition(": error:")[0] for line in lines if ": error:" in line]
    assert wrong == [f"wrong.py:{number}" for number in (3, 4, 5, 6)], checked.stdout + checked.stderr


def test_package_imports_only_httpx_numpy_and_the_standard_library():
    code = (
        "import sys, httpx, numpy; known = {name.split('.')[0] for name in sys.modules};"
        " import toposerve_client, toposerve_client.files;"
        " print(*{name.split('.')[0] for name in sys.modules} - known - set(sys.stdlib_module_names))"
    )
    environment = {"PYTHONPATH": str(ROOT / "client"), "PATH": ""}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == ["toposerve_client"]
