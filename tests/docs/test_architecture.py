"""docs/architecture.md names files and functions that exist, and every package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`([\w./-]+/[\w.-]+\.\w+)`", TEXT)
    assert len(named) > 60
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_function_that_the_page_names_is_in_its_file():
    wrong, steps = [], re.findall(r"`([\w/]+\.py)`, `(\w+)`", TEXT)
    for path, name in steps:
        defined = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if getattr(node, "name", "") == name]
        if not defined:
            wrong.append(f"{path} {name}")
    assert wrong == [] and len(steps) > 30


def test_the_table_has_every_package():
    packages = {path.parent for path in ROOT.glob("*/__init__.py")} | {
        path.parent for path in ROOT.glob("app/*/__init__.py")
    }
    named = {ROOT / name for name in re.findall(r"^\| `([\w/]+)` \|", TEXT, re.MULTILINE)}
    assert packages - {ROOT / "app"} <= named and all(path.is_dir() for path in named)


def test_each_story_is_told_file_by_file():
    for title in ("An image to a mask", "A training job to a registered version", "A probability map to a gradient"):
        (story,) = re.findall(rf"## {title}\n(.*?)(?=\n## |\Z)", TEXT, re.DOTALL)
        assert len(re.findall(r"^\d+\. `[\w/]+\.py`, `\w+`", story, re.MULTILINE)) >= 9, title
