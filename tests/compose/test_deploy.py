"""The manifests for Kubernetes and the dashboard for Grafana agree with what the service is."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.cli import app
from app.settings import Settings
from tests.gateway import Gateway
from tests.images import noise_png
from tests.services import ROOT
from tests.serving import networks

OBJECTS = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "toposerve.yaml").read_text()))
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "toposerve.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in OBJECTS if each["kind"] == kind]


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each workload with the pod that it makes."""
    for each in of_kind("Deployment") + of_kind("Job"):
        yield each, each["spec"]["template"]["spec"]


def test_every_setting_exists_and_every_program_is_a_command() -> None:
    settings = {f"TOPOSERVE_{name.upper()}" for name in Settings.model_fields}
    named = [name for each in of_kind("ConfigMap") for name in each["data"]]
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    for _, pod in pods():
        (container,) = pod["containers"]
        named += [variable["name"] for variable in container.get("env", [])]
        assert container["command"][0] == "toposerve" and container["command"][1] in commands
    assert {name for name in named if name.startswith("TOPOSERVE_")} <= settings


def test_every_container_is_without_privileges_and_has_an_image_that_we_build() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for _, pod in pods():
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        name, _, tag = container["image"].partition(":")
        assert tag == version and re.search(
            rf"^FROM .* AS {name.removeprefix('toposerve-')}$", DOCKERFILE, re.MULTILINE
        )
        assert {"requests", "limits"} == set(container["resources"]) and "memory" in container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_selectors_find_what_they_shall_and_a_worker_has_time_for_its_checkpoint() -> None:
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in of_kind("Deployment")
    }
    for each in of_kind("Deployment"):
        assert each["spec"]["selector"]["matchLabels"] == labels[each["metadata"]["name"]]
        grace_s = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > 2 * Settings.model_fields["stop_grace_s"].default
    (service,), (budget,) = of_kind("Service"), of_kind("PodDisruptionBudget")
    selected = (service["spec"]["selector"], budget["spec"]["selector"]["matchLabels"])
    assert all(each == labels["toposerve-gateway"] for each in selected)
    (scaler,) = of_kind("HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] in labels
    lanes = [pod["containers"][0]["command"][-1] for _, pod in pods() if "worker" in pod["containers"][0]["command"]]
    assert sorted(lanes) == ["quick", "train"]


def test_probes_ask_what_answers_without_a_key(sqlite_gateway: Gateway) -> None:
    probed = 0
    for _, pod in pods():
        for name in ("livenessProbe", "readinessProbe", "startupProbe"):
            probe = pod["containers"][0].get(name)
            if probe:
                answer = sqlite_gateway.http.get(probe["httpGet"]["path"])
                assert answer.status_code == 200, answer.text
                assert probe["httpGet"]["port"] in [port["name"] for port in pod["containers"][0]["ports"]]
                probed += 1
    assert probed == 3


@pytest.fixture
def measured(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> str:
    """What `/metrics` says after a prediction, a refused request and a job."""
    gateway = serve(make_settings())
    gateway.register("blur", networks.blur())
    assert gateway.predict("blur", noise_png(20, 20)).status_code == 200
    gateway.ask("GET", "/v1/images/nothing")
    return gateway.ask("GET", "/metrics", "operator").text + gateway.ask("GET", "/metrics", "admin").text


def test_every_figure_of_the_dashboard_is_one_that_is_told(measured: str) -> None:
    told = set(re.findall(r"^# TYPE (\w+) ", measured, re.MULTILINE)) | set(
        re.findall(r"^(\w+)[{ ]", measured, re.MULTILINE)
    )
    unknown = []
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            unknown += [name for name in re.findall(r"\b(?:toposerve|process)_\w+", target["expr"]) if name not in told]
    assert unknown == []
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"]) >= 8
