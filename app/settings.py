"""All settings of the service: name, unit, range and default.

Read from the environment (`TOPOSERVE_DATA_DIR=...`) or a `.env` file. `docs/reference/settings.md` is generated from
here.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MiB = 1024 * 1024
GiB = 1024 * MiB

Bytes = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


ADDRESSES = {
    "database_url": ("sqlite:", "postgresql:", "postgresql+psycopg:", "postgres:"),
    "redis_url": ("redis:", "rediss:", "unix:"),
}
"""How the addresses of the settings begin."""


class Pacs(BaseModel):
    """How a PACS is reached over DICOMweb."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(pattern=r"^https?://[^/?#]+[^?#]*$")]
    username: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    ca_file: Path | None = None


class Settings(BaseSettings):
    """All settings; unknown `TOPOSERVE_*` names in a `.env` file are refused."""

    model_config = SettingsConfigDict(env_prefix="TOPOSERVE_", env_file=".env", extra="forbid", frozen=True)

    # Storage
    data_dir: Path = Field(Path("toposerve-data"), description="Folder of the embedded database and of the blobs.")
    database_url: str | None = Field(None, description="SQLAlchemy URL; default is SQLite inside data_dir.")
    blob_url: str | None = Field(
        None, description="fsspec URL of the blob store (`s3://bucket/prefix`); default is a folder inside data_dir."
    )
    blob_endpoint_url: str | None = Field(
        None,
        description=(
            "Address of an S3 store that is not Amazon's. Credentials come from AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY."
        ),
    )
    redis_url: str | None = Field(
        None, description="Address of the Redis that wakes workers. Without it they poll the table of jobs."
    )

    # Addresses and keys
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8000, description="Port the gateway listens on; 0 takes a free one."
    )
    open: bool = Field(False, description="Serve without keys. Refused unless host is a loopback address.")
    trusted_hosts: list[str] = Field(["*"], description="Host names accepted in the Host header.")
    root_path: str = Field(
        "",
        pattern=r"^((/[A-Za-z0-9._~-]+)+)?$",
        description=(
            "Path prefix behind a proxy, such as `/toposerve`, that no address of the service begins with; whether the"
            " proxy takes it off or not."
        ),
    )
    cors_origins: list[str] = Field([], description="Browser origins that may call the API.")
    secure_cookies: bool = Field(False, description="Mark the session cookie Secure; switch on behind TLS.")
    key_cache_s: Seconds = Field(
        5,
        description=("How long a key is cached: the longest time that a revoked key is still accepted, in seconds."),
    )
    name_cache_s: Seconds = Field(
        1,
        description=(
            "How long the version that a name means is cached: the longest time an alias moved by another"
            " process takes to reach this one, in seconds."
        ),
    )
    wrong_keys_a_minute: Count = Field(
        60,
        description=(
            "Wrong keys that one address may send in a minute; more are answered 429, each after half a second. A valid"
            " key from the same address is always served."
        ),
    )
    session_s: Seconds = Field(12 * 3600, description="How long a browser session lasts, in seconds.")

    # People of an OpenID provider
    oidc_issuer: str | None = Field(
        None,
        description=(
            "Address of the OpenID provider whose people may sign in, exactly as its tokens say it in `iss`; none by"
            " default. https, unless it is on this machine."
        ),
    )
    oidc_client_id: str | None = Field(None, description="What the provider calls this service.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="The secret that it gave this service; without one it is a public client with PKCE alone."
    )
    oidc_audience: str | None = Field(
        None, description="What `aud` of a bearer token must be or hold; default is the client id."
    )
    oidc_other_clients: list[str] = Field(
        [],
        description=(
            "Client ids of other programs (`azp`) whose bearer tokens are accepted, such as that of a command line."
        ),
    )
    oidc_groups_claim: str = Field(
        "groups",
        description="The claim that lists a person's groups; dots lead through objects (`realm_access.roles`).",
    )
    oidc_scopes: list[str] = Field(
        ["openid", "profile", "email"], description="Scopes that a sign-in in the browser asks the provider for."
    )
    oidc_name: str = Field("OpenID", description="What the button says: Sign in with ...")
    oidc_leeway_s: Annotated[float, Field(ge=0, le=600)] = Field(
        30, description="How far the clocks of provider and gateway may differ, in seconds."
    )
    oidc_timeout_s: Seconds = Field(5, description="How long the provider may take to answer, in seconds.")

    # Limits of one request
    max_json_bytes: Bytes = Field(1 * MiB, description="Largest JSON body, in bytes.")
    max_upload_bytes: Bytes = Field(256 * MiB, description="Largest image upload, in bytes.")
    max_dataset_bytes: Bytes = Field(
        8 * GiB, description="Largest dataset archive, on the wire and declared, in bytes."
    )
    max_archive_entries: Count = Field(10_000, description="Most entries in a dataset archive.")
    max_archive_ratio: Count = Field(200, description="Largest ratio of declared to compressed bytes in an archive.")
    max_pixels: Count = Field(
        64_000_000, description="Most pixels of a 2D image, read from its header before decoding."
    )
    max_voxels: Count = Field(256_000_000, description="Most voxels of a volume, read from its header before decoding.")
    max_decoded_bytes: Bytes = Field(512 * MiB, description="Most bytes a 2D image may take once decoded.")
    decode_children: Count = Field(
        2,
        description=("Processes that decode uploads, started when first needed; small PNG and JPEG files do without."),
    )
    decode_memory_bytes: Bytes = Field(
        1536 * MiB,
        description=(
            "Address space of each of them, in bytes; an image that needs more is refused. Raise it with max_voxels."
        ),
    )
    decode_cpu_s: Count = Field(
        20, description="Processor time of one image there, in seconds; what needs more is refused."
    )
    max_model_bytes: Bytes = Field(
        256 * MiB,
        description=(
            "Largest ONNX model that is imported, in bytes. Raise `import_memory_bytes` with it: a trial needs several"
            " times the model."
        ),
    )
    import_memory_bytes: Bytes = Field(
        2 * GiB, description="Address space of the child process that a foreign model is tried in, in bytes."
    )
    import_cpu_s: Count = Field(30, description="Processor time of that child, in seconds; what needs more is refused.")
    dicom_identifiers: Literal["remove", "keep"] = Field(
        "remove",
        description=(
            "What becomes of the patient's name, number, birth date and sex, and of the study's date, number and"
            " referring physician in DICOM files: taken out at the door, or kept with them. Everything else that may"
            " identify is taken out anyway (docs/decisions/0013)."
        ),
    )
    pacs: dict[str, Pacs] = Field(
        {},
        description=(
            'The PACS that jobs of kind dicomweb may use, by name, as JSON: `{"main": {"url":'
            ' "https://pacs.example/dicom-web", "username": "...", "password": "..."}}`; or `token` (bearer) in place'
            " of the two, and `ca_file` for a certificate of one's own. No job can name another address."
        ),
    )
    pacs_timeout_s: Seconds = Field(60, description="Silence after which a request to a PACS is given up, in seconds.")
    pacs_patience_s: Seconds = Field(
        900, description="How long a job asks a PACS again that is away, slow or answers 5xx, in seconds."
    )
    body_timeout_s: Seconds = Field(30, description="A body that sends nothing for this long is given up, in seconds.")
    min_free_bytes: Annotated[int, Field(ge=0)] = Field(
        256 * MiB, description="Free space below which uploads are refused with 507, in bytes."
    )
    page_size: Annotated[int, Field(ge=1, le=200)] = Field(50, description="Items in one page of a list.")
    events_heartbeat_s: Seconds = Field(
        15, description="Silence after which an event stream sends a comment, in seconds."
    )
    database_timeout_s: Seconds = Field(
        5, description="How long a query may take before the answer is 503, in seconds."
    )

    # Jobs and workers
    lease_s: Seconds = Field(
        30, description="A running job whose heartbeat is older than this goes back to the queue, in seconds."
    )
    heartbeat_s: Seconds = Field(5, description="Time between heartbeats of a running job, in seconds.")
    poll_s: Seconds = Field(
        1, description="Time between polls of the queue when no message wakes the worker, in seconds."
    )
    sweep_s: Seconds = Field(5, description="Time between searches for lost jobs and lost messages, in seconds.")
    stall_s: Seconds = Field(
        600, description="A child that reports no progress for this long is killed and the job resumed, in seconds."
    )
    stop_grace_s: Seconds = Field(
        8,
        description="Time a child gets to write a checkpoint when stopped, or to end once it is done, in seconds.",
    )
    max_attempts: Count = Field(3, description="Times a job is started before it is failed as worker_crashed.")
    train_memory_bytes: Bytes | None = Field(
        None, description="Memory limit of a training child, in bytes; none by default."
    )
    train_threads: Count | None = Field(None, description="CPU threads of a training child; default is all of them.")
    work_dir: Path | None = Field(None, description="Scratch folder of workers; default is inside data_dir.")
    max_steps: Count = Field(200_000, description="Most optimizer steps a training job may ask for.")
    orphan_grace_s: Seconds = Field(3600, description="Age at which bytes that no row names are collected, in seconds.")

    # Serving
    model_memory_bytes: Bytes = Field(
        2 * GiB, description="Memory for warm models; the least recently used leaves first, in bytes."
    )
    predict_slots: Count = Field(2, description="Predictions that run at the same time in one gateway process.")
    predict_queue: Count = Field(32, description="Predictions that may wait for a slot; one more is answered 503.")
    predict_patience: Annotated[float, Field(gt=0)] = Field(
        1.5,
        description=(
            "How long a prediction may be expected to wait for a slot, in multiples of how long one takes; one that"
            " would wait longer is answered 503. A burst after a rest is taken whole, up to two more for each slot."
        ),
    )
    predict_timeout_s: Seconds = Field(
        60,
        description=(
            "How long one prediction may wait and run before it is stopped and answered 503, in seconds; jobs may take"
            " as long as they need."
        ),
    )
    bounded_networks: Literal["imported", "all"] = Field(
        "imported",
        description=(
            "Which networks run in processes of their own with a limit on memory: those that were trained elsewhere, or"
            " all."
        ),
    )
    network_memory_bytes: Bytes = Field(
        4 * GiB,
        description=(
            "Memory of each such process, in bytes; an image for which its network needs more is refused. Not enforced"
            " on a GPU."
        ),
    )
    onnx_threads: Count | None = Field(None, description="Threads of one prediction; default is all cores.")
    onnx_providers: list[Literal["tensorrt", "cuda", "cpu"]] = Field(
        ["cuda", "cpu"],
        description=(
            "What runs networks, in the order it is tried; what is not installed or does not work is passed over, and"
            " the CPU is always the last. TensorRT builds engines for minutes, so it is used only when named."
        ),
    )
    gpu_placement: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {},
        description=(
            "JSON: model name to the number of its GPU; other models go to the GPU with the fewest bytes of networks."
        ),
    )
    batch_most: Count = Field(
        8,
        description=(
            "Images of one padded size, from different requests, predicted at once where that is measured to pay when a"
            " model is loaded (a GPU, not a CPU); no more than predict_slots."
        ),
    )
    batch_wait_ms: Milliseconds = Field(
        2,
        description=(
            "How long an image waits for others to join it while one is being predicted, in milliseconds; a lone one"
            " never waits."
        ),
    )
    tile_batch: Count = Field(
        2,
        description=(
            "Tiles predicted at once when an image is cut up; memory grows with it. On a CPU with no more cores than"
            " that, a lone prediction gives each tile a core."
        ),
    )
    warm_models: bool = Field(
        True, description="Load every model that an alias names at start, so that the first prediction is warm."
    )
    png_level: Annotated[int, Field(ge=0, le=9)] = Field(1, description="zlib level of PNG answers.")

    # Drawing in viewers
    interactive_sessions: Count = Field(
        4, description="Viewers that edit a mask click by click at once in one gateway process."
    )
    interactive_memory_bytes: Bytes = Field(
        2 * GiB, description="Memory of all their maps and masks, in bytes; an image that needs more is refused."
    )
    interactive_idle_s: Seconds = Field(
        600, description="A viewer's session ends when nobody has done anything in it for this long, in seconds."
    )
    interactive_alive_s: Seconds = Field(
        60, description="It ends as well when nothing was heard of the viewer for this long, in seconds."
    )

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
    log_json: bool = Field(True, description="One JSON object per line; switch off for colours at a terminal.")

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> Settings:
        if self.open and not is_loopback(self.host):
            raise ValueError(
                f"open=true serves without keys and host is {self.host}, which other machines can reach. "
                "Set host to 127.0.0.1, or leave open off and make a key with `toposerve keys create`."
            )
        return self

    @model_validator(mode="after")
    def _whole_provider(self) -> Settings:
        if self.oidc_issuer is None:
            return self
        address = urlsplit(self.oidc_issuer)
        on_this_machine = address.scheme == "http" and is_loopback(address.hostname or "")
        if (
            not address.netloc
            or address.query
            or address.fragment
            or not (address.scheme == "https" or on_this_machine)
        ):
            raise ValueError(
                "oidc_issuer must be an https address without `?` and `#`, as the provider's"
                " /.well-known/openid-configuration says it in `issuer`."
            )
        if not self.oidc_client_id:
            raise ValueError(
                "oidc_issuer is set without oidc_client_id. Give the id that the provider gave this service."
            )
        if "openid" not in self.oidc_scopes:
            raise ValueError("oidc_scopes must hold `openid`, or the provider sends no ID token.")
        return self

    @model_validator(mode="after")
    def _known_addresses(self) -> Settings:
        for name, known in ADDRESSES.items():
            given = getattr(self, name)
            if given is not None and not given.startswith(known):
                scheme = given.partition(":")[0][:20]
                raise ValueError(
                    f"{name} begins with `{scheme}`. Give an address that begins with {' or '.join(known)}."
                )
        if self.blob_url is not None:
            from fsspec import available_protocols  # slow to import, and a folder needs no address

            scheme, found, _ = self.blob_url.partition("://")
            if not found or scheme not in available_protocols():
                raise ValueError(
                    "blob_url names no kind of store that is known. Give s3://bucket/prefix or file:///folder."
                )
        return self

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force; Postgres URLs always use psycopg 3."""
        url = self.database_url or f"sqlite:///{self.database_file}"
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url

    @property
    def database_file(self) -> Path | None:
        """The file of the embedded database; None where database_url names another one."""
        return None if self.database_url else self.data_dir.absolute() / "toposerve.db"

    @property
    def blobs(self) -> str:
        """The fsspec URL in force."""
        return self.blob_url or f"file://{self.data_dir.absolute() / 'blobs'}"

    @property
    def scratch(self) -> Path:
        """The scratch folder in force."""
        return self.work_dir or self.data_dir.absolute() / "work"


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once; ends the process with a sentence for each that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("Settings are not valid:\n" + explained(error)) from None


def explained(error: ValidationError) -> str:
    """What is wrong with the settings, a line for each, in the names of the environment and without the values."""
    return "\n".join(f"  {_name(item['loc'])}{item['msg'].removeprefix('Value error, ')}" for item in error.errors())


def _name(place: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in place]
    return f"TOPOSERVE_{'.'.join(parts).upper().removeprefix('TOPOSERVE_')}: " if parts else ""
