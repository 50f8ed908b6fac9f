"""Which package may import which, in the source and in a running process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OURS = ("app", "workers", "models", "topology", "migrations", "toposerve_client")
MAY_IMPORT = {
    "topology": {"topology"},
    "models": {"models", "topology"},
    "workers": {
        "workers",
        "models",
        "topology",
        "app.store",
        "app.queue",
        "app.comparison",
        "app.job_kinds",
        "app.schemas",
        "app.settings",
        "app.imaging",
        "app.serving",
        "app.errors",
        "app.logs",
        "app.sandbox",
    },
    "app": {"app", "topology", "toposerve_client"},
    "client/toposerve_client": {"toposerve_client"},
}
"""Allowed imports between packages. A new one needs a decision page (docs/decisions)."""

VALUES = {"app.errors", "app.metric_table", "app.settings", "app.roles", "app.strict_json", "app.upload"}
"""What any package of app may use: errors, metrics, settings, rights of callers, strict JSON, an uploaded file."""
KEPT = VALUES | {"app.schemas", "app.job_kinds", "app.schemas.job_status", "app.store", "app.queue", "app.imaging"}
"""The same with schemas, rows and bytes, the queue, and images as arrays."""
SERVED = KEPT | {"app.services", "app.serving", "app.comparison"}
"""The same with prediction, with what one process has opened, and with comparisons of trainings."""

INSIDE_APP = {
    "app.errors": set(),
    "app.settings": set(),
    "app.logs": {"app.settings"},
    "app.metric_table": set(),
    "app.roles": {"app.errors"},
    "app.strict_json": {"app.errors"},
    "app.upload": set(),
    "app.version": set(),
    "app.sandbox": set(),
    "app.schemas": VALUES,
    "app.job_kinds": {"app.schemas"},
    "app.schemas.job_status": {"app.schemas", "app.job_kinds"},
    "app.store": VALUES | {"app.job_kinds"},
    "app.queue": VALUES | {"app.job_kinds", "app.store"},
    "app.imaging": VALUES | {"app.sandbox"},
    "app.serving": KEPT | {"app.sandbox"},
    "app.services": KEPT,
    # Tokens of an OpenID provider; loaded only where one is configured, so nothing names it but app.main.
    "app.oidc": VALUES,
    # Which trainings a comparison has and what their figures say; workers and pages ask for the same table.
    "app.comparison": VALUES | {"app.schemas", "app.job_kinds", "app.store"},
    # What serves every endpoint: how a request is read and who sent it; it knows no noun.
    "app.http": VALUES
    | {"app.services", "app.imaging.sniff", "app.imaging.formats", "app.imaging.door", "app.schemas.base"}
    | {
        f"app.store.{each}"
        for each in ("blobs", "idempotency", "keys", "members", "projects", "session", "sessions", "sign_ins", "tables")
    }
    | {"app.serving.slots", "app.serving.pipeline.Stop"},
    # Texts of the OpenAPI document, so that endpoints are short.
    "app.openapi": KEPT | {"app.version", "app.http", "app.serving"},
    # The nouns: rows as schemas, and what must be true before something is accepted. Routes and pages share them.
    "app.representations": SERVED,
    "app.admission": SERVED | {"app.sandbox"},
    "app.routes": SERVED | {"app.http", "app.openapi", "app.representations", "app.admission"},
    "app.protocols": SERVED | {"app.version", "app.http", "app.openapi", "app.representations", "app.admission"},
    "app.pages": SERVED | {"app.http", "app.representations", "app.admission"},
    "app.main": SERVED
    | {"app.version", "app.logs", "app.oidc", "app.http", "app.routes", "app.protocols", "app.pages"},
    # Commands and clients on the host.
    "app.progress": set(),
    "app.demo": {"app.progress", "app.sandbox"},
    "app.supervisor": set(),
    "app.cli": VALUES
    | {"app.version", "app.demo", "app.http.parser", "app.main", "app.progress", "app.store", "app.supervisor"},
}
"""Allowed imports between packages of app, from the bottom up. Imports for type checkers only are left out.

Pages once borrowed functions of endpoints, so a change of a route broke a page, and a job could not be checked without
a request. So the nouns (admission, representations) know nothing of HTTP, `app.http` knows nothing of the nouns, and
only routes, protocols and pages know both, and not each other: docs/decisions/0010.
"""

TOPOLOGY_SEEN_FROM = ("app.serving", "app.admission", "app.protocols", "app.imaging", "app.pages", "app.demo")
"""Packages of app that may import topology, and only inside the function that needs it."""

FOREIGN = {
    "topology": {"numpy", "numba", "llvmlite", "scipy", "cc3d"},  # llvmlite is the lower half of numba
    "models": {"numpy", "torch", "scipy", "safetensors", "onnx", "onnxscript", "onnxruntime", "monai", "numba"},
    "client/toposerve_client": {"numpy", "httpx", "pandas"},  # pandas is optional: only a table is turned into one
}
"""Libraries that topology, models and the client may use."""

NEVER_IN_APP = {
    "torch",
    "monai",
    "onnx",
    "onnxscript",
    "safetensors",
    "pandas",
    "skimage",
    "pickle",
    "dill",
    "cloudpickle",
    "joblib",
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package by its dotted name."""
    for path in sorted((ROOT / package).rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path, name: str, *, top_only: bool = False) -> Iterator[str]:
    """Every name that a file imports, wherever in the file; of `from a import b` both a and a.b.

    Imports for type checkers only are left out.
    """
    tree = ast.parse(path.read_text(), str(path))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name, so that imports can be checked"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def inside(name: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_packages_import_only_what_the_table_allows() -> None:
    wrong = [
        f"{module} imports {name}"
        for package, allowed in MAY_IMPORT.items()
        for module, path in modules(package)
        for name in imported(path, module)
        if name.split(".")[0] in OURS and not inside(name, allowed)
    ]
    assert not wrong, "\n".join(wrong)


def package_of(module: str) -> str:
    """The entry of the table that a module of app belongs to: `app.http` of `app.http.uploads`."""
    known = [package for package in INSIDE_APP if inside(module, {package})]
    return max(known, key=len, default=".".join(module.split(".")[:2]))


def allowed_inside_app(module: str, name: str) -> bool:
    package = package_of(module)
    return inside(name, {package, *INSIDE_APP.get(package, set())})


def test_packages_of_app_import_only_what_the_table_allows() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in modules("app")
        for name in imported(path, module)
        if name.startswith("app.") and not allowed_inside_app(module, name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("app.pages.jobs", "app.routes.jobs.cancel"),
        ("app.protocols.open_inference", "app.routes.predictions"),
        ("app.routes.images", "app.pages.images"),
        ("app.http.uploads", "app.admission.images"),
        ("app.http.uploads", "app.serving.registry.Registry"),
        ("app.admission.jobs", "app.http.callers"),
        ("app.admission.jobs", "app.routes.jobs"),
        ("app.representations.jobs", "app.http.resources"),
        ("app.serving.prediction", "app.http.uploads"),
        ("app.store.images", "app.imaging.Picture"),
        ("app.services", "app.http.key_cache"),
    ],
)
def test_upward_import_is_not_in_the_table(module: str, name: str) -> None:
    assert not allowed_inside_app(module, name)


@pytest.mark.parametrize("package", ["app.routes", "app.representations"])
def test_no_noun_imports_another(package: str) -> None:
    """What two nouns share is in app.admission, app.http or below."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package.replace(".", "/"))
        for name in imported(path, module)
        if inside(name, {package}) and not inside(name, {module})
    ]
    assert not wrong, "\n".join(wrong)


def test_only_commands_of_the_host_import_the_client() -> None:
    users = {
        package_of(module)
        for module, path in modules("app")
        if any(inside(name, ("toposerve_client",)) for name in imported(path, module))
    }
    assert users == {"app.cli", "app.progress", "app.demo"}


def test_every_package_of_app_is_in_the_table() -> None:
    there = {package_of(module) for module, _ in modules("app") if module != "app"}
    assert there == set(INSIDE_APP), "write down what a new package may import"


def test_table_has_no_cycle() -> None:
    packages = {package: {package_of(name) for name in allowed} - {package} for package, allowed in INSIDE_APP.items()}
    while packages:
        lowest = [package for package, below in packages.items() if not below & packages.keys()]
        assert lowest, f"these packages may import each other: {sorted(packages)}"
        for package in lowest:
            del packages[package]


def test_topology_is_imported_only_where_needed() -> None:
    seen = [
        (module, path)
        for module, path in modules("app")
        if any(inside(name, ("topology",)) for name in imported(path, module))
    ]
    assert [module for module, _ in seen if not inside(module, TOPOLOGY_SEEN_FROM)] == []
    early = [
        module
        for module, path in seen
        if any(inside(name, ("topology",)) for name in imported(path, module, top_only=True))
    ]
    assert not early, (
        f"{early} import topology when they are imported; do it inside the function, or the gateway starts with numba"
    )


def test_topology_models_and_client_use_only_their_libraries() -> None:
    known = set(sys.stdlib_module_names) | {"__future__"}
    wrong = [
        f"{module} imports {name}"
        for package, allowed in FOREIGN.items()
        for module, path in modules(package)
        for name in imported(path, module)
        if name.split(".")[0] not in known | allowed | set(OURS)
    ]
    assert not wrong, "\n".join(wrong)


def test_app_imports_no_training_library_and_no_unpickler() -> None:
    # The demo is a client with a process of its own; scikit-image ships the photograph that it segments.
    # A foreign network is judged by ONNX's own reader, in a child that the gateway never imports.
    allowed = {"app.demo.story": ("skimage",), "app.serving.trial": ("onnx",)}
    wrong = [
        f"{module} imports {name}"
        for module, path in modules("app")
        for name in imported(path, module)
        if inside(name, tuple(NEVER_IN_APP)) and not inside(name, allowed.get(module, ()))
    ]
    assert not wrong, "\n".join(wrong)


def test_forbidden_imports_are_detected(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def later():\n    import torch.nn\n    from app.store import keys\n    __import__('models')\n")
    assert set(imported(bad, "bad")) == {"torch.nn", "app.store.keys", "models"}
    assert list(imported(bad, "bad", top_only=True)) == []


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh process after a statement."""
    code = f"import sys; {statement}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
        ).stdout.split()
    )


def test_new_gateway_process_has_not_loaded_heavy_libraries() -> None:
    assert (
        loaded_by("import app.main")
        & {
            "torch",
            "numba",
            "scipy",
            "skimage",
            "celery",
            "kombu",
            "pandas",
            "onnx",
            "onnxruntime",
            "nibabel",
            "matplotlib",
            "joserfc",
            "cryptography",
            "httpx",
            "workers",
            "models",
            "topology",
        }
        == set()
    )


def test_topology_and_models_import_without_app() -> None:
    assert (
        loaded_by("import topology.metrics, topology.graph")
        & {"app", "torch", "models", "workers", "fastapi", "sqlalchemy"}
        == set()
    )
    assert (
        loaded_by("import models.train, models.export")
        & {"app", "workers", "fastapi", "sqlalchemy", "celery", "pydantic_settings"}
        == set()
    )
