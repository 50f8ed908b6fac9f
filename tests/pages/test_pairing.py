"""The page that shows which file of an archive would be the mask of which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import archive
from tests.pages.conftest import Window
from tests.pages.test_accessibility import findings

pytestmark = pytest.mark.browser

FILES = {f"p{patient:02d}/{name}.nii.gz": b"." for patient in range(12) for name in ("scan", "roi_seg")}


@pytest.mark.parametrize(("width", "dark", "script"), [(1280, False, False), (360, True, True)])
def test_pairs_of_an_archive_are_shown_and_nothing_is_stored(
    window: Callable[..., Window], tmp_path: Path, width: int, dark: bool, script: bool
) -> None:
    file = tmp_path / "patients.zip"
    file.write_bytes(archive(FILES | {"README.md": b"read me"}))
    view = window(width=width, dark=dark, script=script)
    view.go("/datasets")
    view.page.set_input_files("#file", str(file))
    view.page.click("button:has-text('Show pairs')")
    assert view.page.locator("h1").inner_text() == "Pairs of patients.zip"
    assert view.page.locator("tbody tr").count() == 12
    assert "README.md" in view.page.locator("main").inner_text()
    if script:
        assert findings(view.page) == []
    if folder := os.environ.get("SCREENSHOTS"):
        view.page.screenshot(path=f"{folder}/pairing-{width}.png", full_page=True)
        view.go("/datasets")
        view.page.screenshot(path=f"{folder}/datasets-{width}.png")
