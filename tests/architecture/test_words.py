"""Log events are snake_case through structlog, and modules begin with their content in one short line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGGERS = ("log", "logger", "structlog.get_logger()")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z]+(_[a-z]+)*")
MOST_WORDS = 15
FOLDERS = ("app", "workers", "topology", "models", "client", "benchmarks")
SHORT_FIRST_LINE = tuple(f"{folder}/**/*.py" for folder in FOLDERS)


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.read_text().strip())


def logged(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call of a log method: `log.info(...)`, `structlog.get_logger().info(...)`."""
    for node in ast.walk(tree):
        method = node.func if isinstance(node, ast.Call) else None
        if isinstance(method, ast.Attribute) and method.attr in LEVELS and ast.unparse(method.value) in LOGGERS:
            yield node


def test_log_events_are_snake_case_with_named_facts() -> None:
    wrong, seen = [], 0
    for path in sources("app/**/*.py", "workers/**/*.py"):
        for call in logged(ast.parse(path.read_text())):
            seen += 1
            event = call.args[0] if len(call.args) == 1 else None
            named = {keyword.arg for keyword in call.keywords}
            if not (isinstance(event, ast.Constant) and EVENT.fullmatch(str(event.value))) or "extra" in named:
                wrong.append(f"{path.relative_to(ROOT)}:{call.lineno} {ast.unparse(call)}")
    assert wrong == [] and seen > 20


def test_only_the_log_set_up_uses_the_standard_logging() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in sources("app/**/*.py", "workers/**/*.py")
        if "logging.getLogger" in path.read_text()
    ]
    # tifffile, pydicom and the ONNX tools write to the standard logging; there it is only silenced
    assert set(users) <= {
        "app/logs.py",
        "app/imaging/dicom/files.py",
        "app/imaging/tiff.py",
        "app/serving/runtime.py",
    }, users


@pytest.mark.parametrize("path", sources(*SHORT_FIRST_LINE), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_begins_with_its_content_in_one_short_line(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    assert first.endswith(".") and 0 < len(first.split()) <= MOST_WORDS, first
