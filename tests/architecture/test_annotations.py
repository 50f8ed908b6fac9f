"""Public functions of topology and models state the types of what they take and give."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def public(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods that are called from Python by others; compiled ones get their types from numba."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for each in members:
            compiled = isinstance(each, ast.FunctionDef) and any("njit" in ast.unparse(d) for d in each.decorator_list)
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and not compiled:
                yield each


def untyped(path: Path) -> list[str]:
    found = []
    for function in public(ast.parse(path.read_text())):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        open_ones = [each.arg for each in arguments if each.annotation is None and each.arg not in ("self", "cls")]
        if open_ones or function.returns is None:
            found.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name} {open_ones or 'returns'}")
    return found


FILES = sorted(path for package in ("topology", "models") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_have_types(path: Path) -> None:
    assert untyped(path) == []


def test_private_and_compiled_functions_are_left_out() -> None:
    lines = ["def f(a): ...", "def _g(a): ...", "@njit", "def h(a): ...", "class K:", "    def m(self): ..."]
    assert [each.name for each in public(ast.parse("\n".join(lines)))] == ["f", "m"]
