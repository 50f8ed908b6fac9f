"""The service as one object, blocking or to await."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import httpx

from toposerve_client import files
from toposerve_client.datasets import Datasets
from toposerve_client.errors import Json
from toposerve_client.jobs import Jobs
from toposerve_client.models import Aliases, Models
from toposerve_client.predictions import Edits, Images, Prediction, Predictions, References
from toposerve_client.requests import Flow, address
from toposerve_client.transport import Async, Blocking, Connection, Group, M, operation

Artifact = Literal["mask", "skeleton", "simple_points", "probability", "uncertainty", "probability_skeleton"]
JSON, MIXED = "application/json", "multipart/mixed"


class Answer(NamedTuple):
    """A prediction whose mask is still a file."""

    report: Json
    content: bytes
    media_type: str
    """image/png, or application/gzip for NIfTI."""


class Service(Group[M]):
    """What can be asked of a service."""

    def __init__(self, mode: M):
        super().__init__(mode)
        self.url = mode.connection.url
        self.images: Images[M] = Images(mode)
        self.datasets: Datasets[M] = Datasets(mode)
        self.jobs: Jobs[M] = Jobs(mode)
        self.models: Models[M] = Models(mode)
        self.aliases: Aliases[M] = Aliases(mode)
        self.predictions: Predictions[M] = Predictions(mode)
        self.references: References[M] = References(mode)
        self.edits: Edits[M] = Edits(mode)

    @operation
    def request(self, /, method: str, path: str, **facts: Any) -> Flow[httpx.Response]:
        """One request to an address of the service, for what has no method here: `/v1/keys`.

        facts  params, headers, json, content (bytes or a Path), repeatable
        Raises Refused and Unreachable as every method does.
        """
        return (yield from self._ask(method, path, **facts))

    @operation
    def predict(
        self,
        model: str,
        image: files.Image,
        *,
        spacing_mm: Sequence[float] | None = None,
        threshold: float | None = None,
        variant: Literal["fp16", "int8"] | None = None,
        topology: bool = True,
        margins: bool = False,
        expect: str | Mapping[str, Any] | None = None,
        strict: bool = False,
        repair: bool = False,
        repair_margin: float | None = None,
        artifact: Artifact | None = None,
        store: bool = False,
    ) -> Flow[Prediction]:
        """Segment one image; its mask and its report.

        model          `vessels`, `vessels@champion` or `vessels:3`
        image          an array, a path or bytes; see `toposerve_client.files.Image`
        spacing_mm     of an array: millimetres from pixel to pixel
        threshold      probability above which a pixel is foreground; the model's own unless given
        variant        a smaller form of the network
        topology       count components, holes and lengths
        margins        say how firmly each of them holds
        expect         what the topology shall be: `beta0:1`
        strict         raise Refused (`expectation_violated`) when it is otherwise
        repair         change the mask as little as its map allows until it is as expected
        repair_margin  without `expect`: keep what holds by this much
        artifact       another picture in place of the mask; `probability` is float32
        store          keep image and prediction; `report["id"]` names it
        """
        options: dict[str, Any] = {
            "threshold": threshold,
            "variant": variant,
            "topology": topology,
            "margins": margins,
            "strict": strict,
        }
        options |= {"repair": repair, "repair_margin": repair_margin, "artifact": artifact, "store": store}
        options["expect"] = expect if expect is None or isinstance(expect, str) else json.dumps(expect)
        answer = yield from self._predicted(model, files.content_of(image, spacing_mm), options)
        return Prediction(files.decoded(answer.content), answer.report)

    @operation
    def predict_file(self, /, model: str, image: files.Image, **options: Any) -> Flow[Answer]:
        """Segment one image; its report, and its mask as a file: NIfTI on the grid of what comes as NIfTI, else PNG.

        options  those of `predict`, as the service names them
        """
        return (yield from self._predicted(model, files.content_of(image), options))

    @operation
    def analyse(self, /, mask: files.Image, reference: files.Image | None = None, **options: Any) -> Flow[Json]:
        """The topology of a mask or map; with a reference every metric, and the place of each error.

        options  threshold, label and the others of `/v1/analyses`
        """
        parts = {"image": mask} | ({} if reference is None else {"reference": reference})
        sent = {}
        for part, each in parts.items():
            content = files.labels_of(each)
            sent[part] = (part, content if isinstance(content, bytes) else content.read_bytes())
        return (yield from self._json("POST", "/v1/analyses", files=sent, params=options, headers={"Accept": JSON}))

    def _predicted(self, model: str, content: bytes | Path, options: Mapping[str, Any]) -> Flow[Answer]:
        path = address("models", model, "predict")
        answer = yield from self._ask("POST", path, content=content, params=options, headers={"Accept": MIXED})
        parts = parts_of(answer.headers["Content-Type"], answer.content)
        (picture,) = (part for name, part in parts.items() if name != "report")
        return Answer(json.loads(parts["report"][1]), picture[1], picture[0])


class Client(Service[Blocking]):
    """A service, asked from the thread of the caller: `with Client("127.0.0.1:8000", key) as client: ...`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 300,
        retries: int = 4,
        project: str | None = None,
    ):
        """Nothing is sent yet.

        url        `http://host:port` or `host:port`; TOPOSERVE_URL or this machine's port 8000 unless given
        key        TOPOSERVE_KEY unless given, or a token of the service's OpenID provider; an open service needs none
        timeout_s  seconds without a byte after which a request is given up
        retries    how often a request is sent again while the service is busy or not there
        project    TOPOSERVE_PROJECT unless given; only somebody with a token and several projects has to name one
        """
        super().__init__(Blocking(Connection(url, key, timeout_s, retries, project)))

    def close(self) -> None:
        """Close every connection."""
        self._mode.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Service[Async]):
    """A service, asked with asyncio: every method is awaited, every list walked with `async for`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 300,
        retries: int = 4,
        project: str | None = None,
    ):
        """As for `Client`."""
        super().__init__(Async(Connection(url, key, timeout_s, retries, project)))

    async def close(self) -> None:
        """Close every connection."""
        await self._mode.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def parts_of(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Name -> media type and bytes of the parts of a multipart answer of the service."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    parts = {}
    for piece in body.split(boundary)[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        name = fields["Content-Disposition"].partition('name="')[2].rstrip('"')
        parts[name] = (fields["Content-Type"], content.removesuffix(b"\r\n"))
    return parts
