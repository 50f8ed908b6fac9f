"""Take the pictures of the pages that the docs show: `python -m tests.pages.pictures` (needs Chromium).

The gallery is drawn from fixed seeds, so a picture changes only when a page does (and with the times it says).
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image as Pillow
from playwright.sync_api import sync_playwright

from app.settings import Settings
from tests.pages.conftest import CHROMIUM, opened

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
WIDTH = 960


def main() -> None:
    """Write docs/pictures/page-*.png."""
    path = os.environ.get("CHROME_BIN") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, opened(Settings(_env_file=None, data_dir=Path(folder), min_free_bytes=0), pairs=8, side=384) as site:
        g = site.gallery
        pages = {"home": "/", "job": f"/jobs/{g.jobs['running']}", "prediction": f"/predictions/{g.predictions['vessels:1'][0]}", "compare": "/compare?a=vessels:1&b=vessels:2"}
        with site.visitor() as browser:
            cookies = [{"name": name, "value": value, "url": site.url} for name, value in browser.cookies.items()]
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
            for name, address in pages.items():
                context = chromium.new_context(viewport={"width": 1280, "height": 1400 if name == "compare" else 960}, color_scheme="dark" if name == "job" else "light")
                context.add_cookies(cookies)
                page = context.new_page()
                page.goto(site.url + address)
                page.wait_for_load_state("load")
                picture = Pillow.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture = picture.resize((WIDTH, picture.height * WIDTH // picture.width), Pillow.Resampling.LANCZOS)
                picture.quantize(256, method=Pillow.Quantize.FASTOCTREE, dither=Pillow.Dither.NONE).save(FOLDER / f"page-{name}.png", optimize=True)
                context.close()
            chromium.close()


if __name__ == "__main__":
    main()
