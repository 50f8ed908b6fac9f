"""What the papers say in one place only: the version, and how long the demo takes."""

import json
import re
import tomllib
from pathlib import Path

from app.main import build
from app.protocols.open_inference import SERVER
from app.settings import Settings

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [
    path for folder in ("app", "workers", "models", "topology") for path in sorted((ROOT / folder).rglob("*.py"))
]
"""Files of Python and the pages that people read."""


def test_version_of_pyproject_is_the_one_that_the_service_tells(tmp_path):
    version = PYPROJECT["project"]["version"]
    assert (build(Settings(_env_file=None, data_dir=tmp_path)).version, SERVER["version"]) == (version, version)
    assert not [path for path in SOURCES if json.dumps(version) in path.read_text()]


def test_changelog_begins_with_the_version_of_pyproject():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert re.match(r"## ([^ ,]+), ", headings[0])[1] == PYPROJECT["project"]["version"]


def test_duration_of_the_demo_is_stated_once():
    said = re.compile(r"(?:about|fits?|into|takes|in) ([\w.]+) minutes")
    found = [(path.name, match[0]) for path in [*PAPERS, *SOURCES] for match in said.finditer(path.read_text())]
    assert [name for name, _ in found] == ["README.md"], found


def test_decisions_are_numbered_one_by_one():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert all(page.read_text().startswith(f"# {int(page.name[:4])}. ") for page in pages)
