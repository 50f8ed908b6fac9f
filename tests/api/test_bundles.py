"""A model version as a MONAI bundle: MONAI itself runs it, and the service reads it back."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import imaging
from app.admission.networks import bundled
from tests.gateway import Gateway
from tests.images import noise
from tests.serving import networks

SIDES = {2: (40, 56), 3: (8, 24, 16)}
SCALINGS = {
    "image": {"kind": "image"},
    "dataset": {"kind": "dataset", "mean": [100.0], "std": [60.0]},
    "clipped": {"kind": "clipped", "mean": [100.0], "std": [60.0], "low": [20.0], "high": [200.0]},
    "min_max": {"kind": "min_max"},
    "percentile": {"kind": "percentile", "low": 2.0, "high": 98.0},
}


def bundle_of(gateway: Gateway, model: str) -> zipfile.ZipFile:
    answer = gateway.ask("GET", f"/v1/models/{model}/versions/1/bundle.zip", "viewer")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip", answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI looks for a DICOM codec of NVIDIA
@pytest.mark.parametrize(
    ("dimensions", "scaling"), [(2, "image"), (3, "image"), *((2, kind) for kind in SCALINGS if kind != "image")]
)
def test_monai_runs_the_bundle_and_gives_our_mask(
    sqlite_gateway: Gateway, tmp_path: Path, dimensions: int, scaling: str
) -> None:
    from monai.bundle import ConfigParser

    offset = -2.0 if scaling in ("min_max", "percentile") else -0.5  # in the middle of what the network sees
    content = networks.blur(offset=offset) if dimensions == 2 else networks.blur_3d()
    facts: dict[str, Any] = {"dimensions": dimensions, "tile": list(SIDES[dimensions]), "scaling": SCALINGS[scaling]}
    sqlite_gateway.register("vessels", content, **facts)
    bundle_of(sqlite_gateway, "vessels").extractall(tmp_path)
    pixels = noise(1, 1, *SIDES[dimensions])[0] if dimensions == 2 else noise(1, 1, *SIDES[dimensions])[0, 0]
    affine = np.diag([0.5, 0.6, 2.0, 1.0])
    scan = imaging.encode_nifti_gz(pixels.reshape(SIDES[dimensions]), affine)
    (tmp_path / "scan.nii.gz").write_bytes(scan)
    root = tmp_path / "vessels-1"
    parser = ConfigParser()
    parser.read_config(root / "configs/inference.json")
    parser.update({"bundle_root": str(root), "image": str(tmp_path / "scan.nii.gz")})
    theirs = parser.get_parsed_content("labels").numpy()[0].T
    predicted = sqlite_gateway.predict("vessels", scan, media="application/gzip", accept="application/gzip")
    ours = sqlite_gateway.services.decoders.decode_mask(predicted.content).reshape(theirs.shape) > 0
    assert 0.05 < ours.mean() < 0.95, "the comparison says something"
    np.testing.assert_array_equal(theirs > 0, ours)
    parser.get_parsed_content("run")
    saved = next((root / "eval").rglob("*_mask.nii.gz"))
    mask = sqlite_gateway.services.decoders.decode(saved.read_bytes())
    np.testing.assert_array_equal(mask.pixels[0].reshape(ours.shape) > 0, ours)


def test_service_reads_its_own_bundle_back(gateway: Gateway) -> None:
    classes = ("background", "wall", "lumen")
    gateway.register("walls", networks.bands(3), classes=classes, scaling=SCALINGS["dataset"], multiple=8)
    archive = gateway.ask("GET", "/v1/models/walls/versions/1/bundle.zip").content
    sent = {"Content-Type": "application/zip"}
    read = gateway.ask("POST", "/v1/models/again/versions", content=archive, headers=sent)
    assert read.status_code == 201, read.text
    image = imaging.encode_png(noise(1, 1, 40, 56)[0])
    first, second = (gateway.predict(name, image, accept="image/png").content for name in ("walls", "again"))
    assert first == second


def test_metadata_has_what_the_specification_wants(gateway: Gateway) -> None:
    gateway.register("walls", networks.bands(3), classes=("background", "wall", "lumen"), multiple=8)
    archive = bundle_of(gateway, "walls")
    told = json.loads(archive.read("walls-1/configs/metadata.json"))
    wanted = "version monai_version pytorch_version numpy_version optional_packages_version task description authors"
    assert {*wanted.split(), "copyright", "network_data_format"} <= told.keys()
    answer = told["network_data_format"]["outputs"]["pred"]
    described = "type format num_channels spatial_shape dtype value_range is_patch_data channel_def"
    assert {*described.split()} <= answer.keys()
    read = bundled(told)
    assert read["classes"] == ["background", "wall", "lumen"] and read["multiple"] == 8 and read["dimensions"] == 2
    names = {name.removeprefix("walls-1/") for name in archive.namelist()}
    configs = {"configs/metadata.json", "configs/inference.json"}
    assert names == configs | {"manifest.json", "docs/README.md", "models/model.onnx"}
    assert gateway.ask("GET", "/v1/models/walls/versions/2/bundle.zip").status_code == 404
    assert gateway.ask("GET", "/v1/models/walls/versions/1/bundle.zip", "stranger").status_code == 404
