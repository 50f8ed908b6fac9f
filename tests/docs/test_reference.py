"""The generated reference pages are up to date and their links work."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = runpy.run_path(str(DOCS / "reference" / "make.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_reference_lists_every_setting_error_and_route(name):
    assert (DOCS / "reference" / name).read_text() == PAGES[name](), "run `make docs`"


def test_no_link_between_our_pages_is_broken():
    import re

    root = DOCS.parent
    broken = [
        f"{page.relative_to(root)} -> {target}"
        for page in [*DOCS.rglob("*.md"), *root.glob("*.md")]
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken
