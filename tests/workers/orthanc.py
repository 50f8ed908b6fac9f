"""Debian's Orthanc with its DICOMweb plugin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import requests

from tests.conftest import dicom_program
from tests.imaging.dicom_files import written
from tests.services import Process, free_port, wait_for

AUTH = ("robot", "secret")


@contextmanager
def running_orthanc(folder: Path, files: Sequence[pydicom.Dataset]) -> Iterator[str]:
    """The address of an Orthanc that holds these files and knows one user, `AUTH`."""
    program, port = dicom_program("Orthanc"), free_port()
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not plugin.exists():
        reason = "no DICOMweb plugin of Orthanc: install it with `apt-get install orthanc-dicomweb`"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    configuration = {
        "HttpPort": port,
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([AUTH]),
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    process = Process([program, str(folder / "orthanc.json")], log=folder / "orthanc.log")
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return requests.get(f"{url}/system", auth=AUTH, timeout=2).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_for(ready, what="Orthanc")
        for file in files:
            requests.post(f"{url}/instances", data=written(file), auth=AUTH, timeout=10).raise_for_status()
        yield url
    finally:
        process.kill()
