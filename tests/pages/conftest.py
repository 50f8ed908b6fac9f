"""A gateway with sample content, and Chromium to view its pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.gateway import Gateway, started
from tests.pages.gallery import Gallery, hang

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]
HTML = {"Accept": "text/html"}


class Site:
    """A running gateway, what hangs in it, and ways to look at it as somebody."""

    def __init__(self, gateway: Gateway, gallery: Gallery):
        self.url, self.services, self.gallery = gateway.url, gateway.services, gallery

    @contextmanager
    def visitor(self, key: str | None = "") -> Iterator[httpx.Client]:
        """A browser without script: keeps cookies, asks for HTML, follows nothing; signed in unless the key is None."""
        with httpx.Client(base_url=self.url, headers=HTML, timeout=30) as client:
            if key is not None:
                answer = client.post("/login", data={"key": key or self.gallery.key})
                assert answer.status_code == 303, answer.text
            yield client

    def program(self, key: str = "") -> httpx.Client:
        """A program with a bearer key."""
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key or self.gallery.key}"}, timeout=30
        )


@pytest.fixture(scope="module")
def site(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One gallery for a module; tests that change something choose things of their own."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(sqlite_template, folder / "toposerve.db")
    settings = Settings(
        _env_file=None, data_dir=folder, min_free_bytes=0, onnx_threads=1, poll_s=0.1, warm_models=False
    )
    with started(settings) as gateway:
        yield Site(gateway, hang(gateway.services, pairs=4, side=128))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright,
    which keeps an event loop running in this thread until the module ends.
    """
    path = os.environ.get("CHROME_BIN") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no Chromium: install it with `apt-get install chromium` or set CHROME_BIN"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


class Window:
    """A browser window that remembers what went wrong in it."""

    def __init__(self, context: Any, site: Site):
        self.page, self.site, self.wrong = context.new_page(), site, []
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on(
            "console",
            lambda message: (
                self.wrong.append(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None
            ),
        )
        self.page.on("requestfailed", self._failed)
        self.page.on(
            "response",
            lambda answer: self.wrong.append(f"{answer.status} {answer.url}") if answer.status >= 500 else None,
        )

    def _failed(self, request: Any) -> None:
        # A page that is left takes its pictures and its event stream with it.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.failure} {request.url}")

    def go(self, path: str) -> Any:
        """Open a page of the site."""
        return self.page.goto(self.site.url + path)


@pytest.fixture
def window(chromium: Any, site: Site) -> Iterator[Callable[..., Window]]:
    """Open windows, signed in unless the key is None: `window(width=390, dark=True, script=False)`.

    At the end nothing may have gone wrong in any.
    """
    opened_windows: list[tuple[Any, Window]] = []

    def open_(*, width: int = 1280, dark: bool = False, script: bool = True, key: str | None = "") -> Window:
        context = chromium.new_context(
            viewport={"width": width, "height": 844},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        with site.visitor(key) as browser:
            context.add_cookies(
                [
                    {"name": name, "value": value, "url": site.url, "httpOnly": True}
                    for name, value in browser.cookies.items()
                ]
            )
        opened_windows.append((context, Window(context, site)))
        return opened_windows[-1][1]

    yield open_
    for context, _ in opened_windows:
        context.close()
    assert [wrong for _, each in opened_windows for wrong in each.wrong] == []
