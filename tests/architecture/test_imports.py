"""Which package may import which, in the source and in a running process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

OURS = ("app", "workers", "models", "topology", "migrations")
MAY_IMPORT = {
    "topology": {"topology"},
    "models": {"models", "topology"},
    "workers": {
        "workers",
        "models",
        "topology",
        "app.store",
        "app.queue",
        "app.job_kinds",
        "app.schemas",
        "app.settings",
        "app.imaging",
        "app.serving",
        "app.errors",
        "app.logs",
        "app.sandbox",
    },
    "app": {"app", "topology"},
}
"""Allowed imports between packages. A new one needs a decision page (docs/decisions)."""

TOPOLOGY_SEEN_FROM = ("app.serving", "app.admission", "app.protocols", "app.imaging", "app.pages", "app.demo")
"""Packages of app that may import topology, and only inside the function that needs it."""

FOREIGN = {
    "topology": {"numpy", "numba", "llvmlite", "scipy"},  # llvmlite is the lower half of numba
    "models": {"numpy", "torch", "scipy", "safetensors", "onnx", "onnxscript", "onnxruntime", "monai", "numba"},
}
"""Libraries that topology and models may use."""

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


def test_topology_and_models_use_only_their_libraries() -> None:
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
