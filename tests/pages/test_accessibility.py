"""Every page as axe-core judges it, at two widths, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.pages.conftest import Site, Window
from tests.pages.test_http import addresses

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.browser


def findings(page: Any) -> list[str]:
    """What axe finds wrong, a line for each element."""
    answer = axe.Axe().run(page).response
    assert len(answer["passes"]) > 15, "axe has looked"
    found = answer["violations"]
    return [f"{each['impact']} {each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_axe_finds_nothing_on_any_page(site: Site, window: Callable[..., Window], width: int, dark: bool) -> None:
    view = window(width=width, dark=dark)
    for address in [*addresses(site), "/docs", "/docs?tag=images", "/docs?q=skeleton", "/docs?shape=TrainSpec"]:
        view.go(address)
        assert findings(view.page) == [], address
