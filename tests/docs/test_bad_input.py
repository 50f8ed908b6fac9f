"""The page on bad input names only existing tests and error codes."""

import re
from pathlib import Path

from app.errors import every_problem

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "bad-input.md").read_text()


def test_every_test_that_the_page_names_exists():
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40 and named <= written, named - written


def test_every_code_that_the_page_names_exists():
    codes = {problem.code: problem.status for problem in every_problem()}
    named = re.findall(r"(\d{3}) `([a-z_]+)`", PAGE)
    assert len(named) > 40 and all(codes.get(code) == int(status) for status, code in named), named


def test_every_row_of_the_page_has_a_test():
    rows = re.findall(r"^\| ([BF]\d+.*?) \|.*\| (.*?) \|$", PAGE, re.MULTILINE)
    assert len(rows) > 30 and all("`test_" in tests for _, tests in rows)
