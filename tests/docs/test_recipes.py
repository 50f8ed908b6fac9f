"""The recipes of CONTRIBUTING.md work: each patch is applied to a copy of the tree and tested there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
COPIED = ("app", "benchmarks", "docs", "migrations", "models", "tests", "topology", "workers", "pyproject.toml")
PYTHON = ".venv/bin/python"
SHOWN = {
    "loss": '"brier"',
    "network": '"dilated"',
    "image-format": "image/x-sgi",
    "endpoint": "/v1/audit",
    "job-kind": "CountSpec",
    "metric": "max_size_error",
    "page": "/audit.json",
}
"""By recipe, a word of the API that was not there before."""
SHOW = """
import json, pathlib, tempfile
from fastapi.routing import iter_route_contexts
from app.main import build
from app.settings import Settings
app = build(Settings(_env_file=None, data_dir=pathlib.Path(tempfile.mkdtemp()), open=True))
print(json.dumps(app.openapi()), [route.path_format for route in iter_route_contexts(app.router.routes)])
"""


@dataclass(frozen=True)
class Recipe:
    """A section of CONTRIBUTING.md that names a patch."""

    name: str
    steps: list[str]
    command: list[str]

    @property
    def patch(self) -> Path:
        """The worked example."""
        return ROOT / "docs" / "recipes" / f"{self.name}.patch"

    @property
    def files(self) -> list[str]:
        """The files that the patch touches."""
        return re.findall(r"^\+\+\+ b/(\S+)$", self.patch.read_text(), re.MULTILINE)


def recipes() -> list[Recipe]:
    found = []
    for section in re.split(r"^##+ ", TEXT, flags=re.MULTILINE):
        name = re.search(r"\(docs/recipes/([\w-]+)\.patch\)", section)
        if name is not None:
            steps = re.findall(r"^\d\. (.*(?:\n   .*)*)", section, re.MULTILINE)
            (command,) = re.findall(r"```sh\n(.*)\n```", section)
            found.append(Recipe(name[1], steps, shlex.split(command)))
    return found


each_recipe = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)


def run(command: list[str], folder: Path) -> str:
    """What a command says; its folder goes before every other place that Python imports from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def newest_revision() -> str:
    """The migration that no other follows."""
    texts = [path.read_text() for path in (ROOT / "migrations" / "versions").glob("*.py")]
    revisions, before = (
        {found[1] for text in texts if (found := re.search(rf'^{name} = "(\w+)"', text, re.MULTILINE))}
        for name in ("revision", "down_revision")
    )
    (newest,) = revisions - before
    return newest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree as it is, with the machine code of its kernels."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            unneeded = shutil.ignore_patterns("pictures", *(["__pycache__"] if name != "topology" else []))
            shutil.copytree(ROOT / name, tmp_path / name, ignore=unneeded)
        else:
            shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def test_there_is_a_recipe_for_every_patch_and_every_kind_of_addition():
    assert {recipe.name for recipe in recipes()} == set(SHOWN)
    assert {path.stem for path in (ROOT / "docs" / "recipes").iterdir()} == set(SHOWN)


@each_recipe
def test_steps_name_the_files_of_the_patch(recipe: Recipe):
    named = [file for step in recipe.steps for file in re.findall(r"(?:^|\. )`([\w/]+\.\w+)`", step)]
    assert sorted(named) == sorted(recipe.files)


@each_recipe
def test_recipe_adds_what_it_says(recipe: Recipe, copy: Path):
    assert SHOWN[recipe.name] not in run([sys.executable, "-c", SHOW], copy)
    run(["git", "apply", "--recount", "--unidiff-zero", "-C1", str(recipe.patch)], copy)
    for file in recipe.files:
        if file.startswith("migrations/"):
            text = (copy / file).read_text()
            numbered = re.sub(r'^(revision = )"\w+"', r'\1"recipe"', text, flags=re.MULTILINE)
            followed = re.sub(r'^(down_revision = )"\w+"', rf'\1"{newest_revision()}"', numbered, flags=re.MULTILINE)
            (copy / file).write_text(followed)
    sources = [file for file in recipe.files if file.endswith(".py")]
    run([sys.executable, "-m", "ruff", "check", *sources], copy)
    run([sys.executable, "-m", "ruff", "format", "--check", *sources], copy)
    python, *arguments = recipe.command
    assert python == PYTHON
    said = run([sys.executable, *arguments, "-q", "-p", "no:cacheprovider"], copy)
    assert re.search(r"\d+ passed", said), said
    assert SHOWN[recipe.name] in run([sys.executable, "-c", SHOW], copy)


def test_test_that_the_page_names_exists():
    (command,) = re.findall(r"## Run one test\n\n```sh\n(.*)\n```", TEXT)
    python, *arguments = shlex.split(command)
    assert python == PYTHON
    assert re.search(r"\d+ passed", run([sys.executable, *arguments, "-q", "-p", "no:cacheprovider"], ROOT))


@pytest.mark.parametrize(
    ("file", "code"),
    re.findall(r"\(`([\w/]+\.py)`\):\n\n```python\n(.*?)```", TEXT, re.DOTALL),
    ids=lambda part: part[:40],
)
def test_examples_of_style_are_the_code_of_the_tree(file: str, code: str):
    assert code in (ROOT / file).read_text()


def test_style_has_two_examples():
    assert len(re.findall(r"\(`([\w/]+\.py)`\):\n\n```python\n", TEXT)) == 2


def test_templates_of_the_forge_are_there():
    templates = sorted(path.name for path in (ROOT / ".github").rglob("*.md"))
    assert templates == ["bug.md", "pull_request_template.md", "request.md"]
