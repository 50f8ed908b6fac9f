"""Pages in Chromium: script on and off, keyboard, phone width, dark mode.

The `window` fixture fails a test whose pages logged an error, broke the content security policy or asked for a file in
vain.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from app.store.tables import Job, now
from tests.pages.conftest import Site, Window
from tests.pages.gallery import Curator, vessels
from tests.pages.test_http import addresses

pytestmark = pytest.mark.browser
Open = Callable[..., Window]


def training(site: Site, upto: int = 200, state: str = "running") -> Any:
    """A job of this test's own, and a way to let it go on."""
    with site.services.database.write() as session:
        job = Curator(site.services, session, site.gallery.project_id).training(state, upto=upto, seed=upto)
        return job.id


def tell(site: Site, job_id: Any, event: str, data: dict[str, Any], **columns: Any) -> None:
    """What a worker would write."""
    with site.services.database.write() as session:
        job = session.get_one(Job, job_id)
        for name, value in columns.items():
            setattr(job, name, value)
        Curator(site.services, session, site.gallery.project_id).tell(job, event, data)


def state_of(site: Site, job_id: Any) -> str:
    with site.services.database.read() as session:
        return session.get_one(Job, job_id).state


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_page_fits_its_window_and_breaks_no_rule(site: Site, window: Open, width: int, dark: bool) -> None:
    view = window(width=width, dark=dark)
    for address in addresses(site):
        assert view.go(address).status == 200, address
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width, (
            f"{address} is wider than {width} px"
        )
        small = view.page.evaluate(
            """[...document.querySelectorAll('main *')].filter(e => e.offsetParent && e.childNodes.length
            && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
            && !e.closest('svg') && parseFloat(getComputedStyle(e).fontSize) < 10)
            .map(e => e.outerHTML.slice(0, 120))"""
        )
        assert small == [], address


CONTRAST = """() => {
  const parse = (text) => { const m = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(srgb') ? [m[0] * 255, m[1] * 255, m[2] * 255, m[3] ?? 1]
      : [m[0], m[1], m[2], m[3] ?? 1]; };
  const over = (top, under) => top.slice(0, 3).map((value, index) => value * top[3] + under[index] * (1 - top[3]));
  const ground = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.push(parse(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const light = (rgb) => { const [r, g, b] = rgb.map(
    (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!texts || !element.getClientRects().length || element.closest('.unseen, .skip, option, datalist')) continue;
    const style = getComputedStyle(element), under = ground(element);
    const colour = parse(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(over(colour, under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    found.push({ ratio, enough: ratio >= (large ? 3 : 4.5), what: element.outerHTML.slice(0, 100) });
  }
  return found;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_contrast_meets_wcag_aa(site: Site, window: Open, dark: bool) -> None:
    view, seen = window(dark=dark), 0
    for address in addresses(site):
        view.go(address)
        letters = view.page.evaluate(CONTRAST)
        seen += len(letters)
        assert [each for each in letters if not each["enough"]] == [], address
    assert seen > 500


def test_job_progress_updates_live(site: Site, window: Open) -> None:
    job, view = training(site), window()
    view.go(f"/jobs/{job}")
    page = view.page
    assert page.locator("[data-percent]").inner_text() == "19 %" and page.title().startswith("19 % running: Train")
    page.wait_for_selector("html[data-following]")
    tell(
        site,
        job,
        "progress",
        {"phase": "train", "step": 700, "steps": 1000, "fraction": 0.66, "loss": 0.4, "eta_s": 93.0},
        step=700,
        fraction=0.66,
        eta_s=93.0,
    )
    page.wait_for_selector("[data-percent]:has-text('66 %')", timeout=5000)
    assert page.title().startswith("66 % running")
    assert page.locator("[data-step]").inner_text() == "step 700 of 1000"
    assert page.locator("[data-eta]").inner_text() == "ends in about 1 min 33 s"
    tell(site, job, "metric", {"step": 700, "metrics": {"dice": 0.8123, "cldice": 0.8}, "items": 8, "best": True})
    page.wait_for_selector("td:has-text('0.812')", timeout=8000)
    tell(site, job, "log", {"level": "warning", "message": "one image is constant"})
    page.wait_for_selector(".log:has-text('one image is constant')", timeout=8000)
    tell(site, job, "state", {"state": "succeeded"}, state="succeeded", finished_at=now(), fraction=1.0, eta_s=None)
    page.wait_for_selector(".state-succeeded", timeout=8000)
    assert page.locator("progress").count() == 0 and page.locator("text=Cancel").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_time_left_of_a_job_stands_beside_its_percent_and_not_over_it(site: Site, window: Open, width: int) -> None:
    view = window(width=width)
    view.go(f"/jobs/{site.gallery.jobs['running']}")
    percent, left = (view.page.locator(f"[data-{name}]").first.bounding_box() for name in ("percent", "eta"))
    apart = left["x"] >= percent["x"] + percent["width"] or left["y"] >= percent["y"] + percent["height"]
    assert left["width"] > 0 and apart, (percent, left)


def test_a_job_is_cancelled_by_its_button_and_the_page_says_so(site: Site, window: Open) -> None:
    job, view = training(site), window()
    view.go(f"/jobs/{job}")
    view.page.click("summary:has-text('Cancel')")
    assert state_of(site, job) == "running", "it asks first"
    view.page.click("button:has-text('Yes, cancel it')")
    view.page.wait_for_selector(".state-cancelling")
    assert state_of(site, job) == "cancelling"


def test_chart_shows_values_under_the_pointer(site: Site, window: Open) -> None:
    view = window()
    view.go(f"/jobs/{site.gallery.jobs['trained-1']}")
    chart = view.page.locator("[data-chart]").first
    last = chart.locator("[data-value]").first.inner_text()
    chart.locator("svg[role=img]").hover(position={"x": 80, "y": 80})
    view.page.wait_for_selector(".cross", state="attached")
    assert chart.locator("[data-value]").first.inner_text() != last
    view.page.mouse.move(2, 2)
    view.page.wait_for_selector(".cross", state="detached")
    assert chart.locator("[data-value]").first.inner_text() == last


def shown(page: Any) -> dict[str, bool]:
    """Which layers can be seen."""
    visible = {
        name: page.locator(f".layer.{name}").first.is_visible()
        for name in ("mask", "skeleton", "reference", "difference", "located")
    }
    # Once the script has drawn the marks, they are shown instead of the picture of them.
    return visible | {"located": visible["located"] or page.locator("[data-marks] button").first.is_visible()}


def toggle(page: Any, label: str) -> None:
    page.locator(".viewer > label", has_text=label).first.click()


@pytest.mark.parametrize("script", [True, False])
def test_layers_are_switched_with_and_without_script(site: Site, window: Open, script: bool) -> None:
    view = window(script=script)
    view.go(f"/predictions/{site.gallery.predictions['vessels:1'][0]}")
    page = view.page
    assert shown(page) == {"mask": False, "skeleton": False, "reference": False, "difference": True, "located": True}
    toggle(page, "Mask")
    toggle(page, "Difference")
    toggle(page, "Wrong places")
    assert shown(page) == {"mask": True, "skeleton": False, "reference": False, "difference": False, "located": False}
    with_mask = pixels(page)
    toggle(page, "Mask")
    assert np.abs(with_mask.astype(int) - pixels(page)).mean() > 1, "the mask is drawn"
    toggle(page, "Image")
    assert not page.locator(".picture").is_visible()


def pixels(page: Any) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(page.locator("[data-stack]").first.screenshot())).convert("RGB"))


def test_viewer_works_by_keyboard(site: Site, window: Open) -> None:
    view = window()
    view.go(f"/predictions/{site.gallery.predictions['vessels:1'][0]}")
    page = view.page
    frame = page.locator("[data-frame]")
    frame.focus()
    page.keyboard.press("2")
    assert shown(page)["mask"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert frame.get_attribute("data-scale") == "2.25" and "zoomed" in str(frame.get_attribute("class"))
    before = page.locator("[data-stack]").evaluate("e => e.style.transform")
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-stack]").evaluate("e => e.style.transform") != before
    page.keyboard.press("0")
    assert frame.get_attribute("data-scale") == "1.00"
    page.locator(".looks summary").click()
    page.locator("[data-opacity]").fill("20")
    assert page.locator(".layer.mask").evaluate("e => getComputedStyle(e).opacity") == "0.2"


def test_viewer_works_by_pointer_and_buttons(site: Site, window: Open) -> None:
    view = window()
    view.go(f"/predictions/{site.gallery.predictions['vessels:1'][0]}")
    page, frame = view.page, view.page.locator("[data-frame]")
    page.click("[data-zoom=in]")
    page.click("[data-zoom=in]")
    assert frame.get_attribute("data-scale") == "2.25"
    before = page.locator("[data-stack]").evaluate("e => e.style.transform")
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 160, steps=3)
    page.mouse.up()
    assert page.locator("[data-stack]").evaluate("e => e.style.transform") != before
    page.click("[data-zoom=fit]")
    assert frame.get_attribute("data-scale") == "1.00"


def test_two_predictions_are_zoomed_together(site: Site, window: Open) -> None:
    view = window()
    first, second = site.gallery.predictions["vessels:1"][0], site.gallery.predictions["vessels:2"][0]
    view.go(f"/compare?a={first}&b={second}")
    view.page.locator("[data-zoom=in]").first.click()
    scales = [each.get_attribute("data-scale") for each in view.page.locator("[data-frame]").all()]
    assert scales == ["1.50", "1.50"]
    toggle(view.page, "A against B")
    assert view.page.locator(".layer.disagreement").first.is_visible()


@pytest.mark.parametrize("script", [True, False])
def test_whole_workflow_can_be_clicked_through(site: Site, window: Open, script: bool, tmp_path: Any) -> None:
    view = window(script=script, key=None)
    page = view.page
    view.go("/models")
    page.fill("#key", site.gallery.key)
    page.click("button:has-text('Sign in')")
    page.click("a:has-text('vessels:1')")
    page.click("summary:has-text('Point an alias')")
    page.fill("#alias", f"chosen-{script}".lower())
    page.check("[name=sure]")
    page.click("button:has-text('Set alias')")
    page.wait_for_selector(f".tag.alias:has-text('@chosen-{script}')".lower())
    picture = tmp_path / "eye.png"
    Pillow.fromarray(vessels(20 + script, 128)[0]).save(picture)
    page.set_input_files("#file", str(picture))
    page.click("button:has-text('Predict')")
    page.wait_for_url(re.compile("/predictions/"))
    assert page.locator("h1").inner_text().startswith("eye.png")
    assert page.locator("th:has-text('Loops (Betti-1)')").count() == 1
    assert shown_mask(page)
    page.click("main a:has-text('vessels:1') >> nth=0")
    page.click("a:has-text('its training')")
    assert page.locator(".state-succeeded").count() == 1
    page.click("a:has-text('vessels@1')")
    assert page.locator("h1").inner_text().startswith("vessels@1")
    page.click(".gallery a >> nth=0")
    page.wait_for_url(re.compile("/images/"))
    page.click("nav a:has-text('Jobs')")
    page.select_option("#find-state", "failed")
    page.click("button:has-text('Find')")
    page.click("tbody a >> nth=0")
    assert "Lower the learning rate" in page.locator("[role=alert]").inner_text()
    page.click("button:has-text('Sign out')")
    page.wait_for_url(re.compile("/login"))


def shown_mask(page: Any) -> bool:
    return (
        page.locator(".layer.mask").is_visible() and page.locator(".layer.mask").evaluate("e => e.naturalWidth > 0")
        if page.locator(".layer.mask").count()
        else False
    )


def test_without_script_a_running_job_reloads_itself(site: Site, window: Open) -> None:
    job, view = training(site), window(script=False)
    view.go(f"/jobs/{job}")
    assert view.page.locator("meta[http-equiv=refresh]").count() == 1
    tell(
        site,
        job,
        "state",
        {"state": "failed"},
        state="failed",
        finished_at=now(),
        error={"code": "x", "detail": "It broke."},
    )
    view.page.wait_for_selector("text=It broke.", timeout=9000)
    assert view.page.locator("meta[http-equiv=refresh]").count() == 0


def test_focused_elements_are_visible(site: Site, window: Open) -> None:
    view = window()
    for address in ("/", "/models/vessels/versions/1", f"/predictions/{site.gallery.predictions['vessels:1'][0]}"):
        view.go(address)
        seen = set()
        for _ in range(60):
            view.page.keyboard.press("Tab")
            place = view.page.evaluate(
                """() => { const e = document.activeElement; if (e === document.body) return null;
                const label = e.matches('.viewer > input') ? e.nextElementSibling : e,
                    s = getComputedStyle(label), r = label.getBoundingClientRect();
                return { what: e.outerHTML.slice(0, 80), outline: s.outlineStyle !== 'none'
                    && parseFloat(s.outlineWidth) >= 2, size: r.width > 0 }; }"""
            )
            if place is None:
                break
            seen.add(place["what"])
            assert place["outline"] and place["size"], (address, place["what"])
        assert len(seen) > 12, address


def test_script_in_a_file_name_never_runs(site: Site, window: Open) -> None:
    view = window()
    view.page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for address in (
        "/",
        "/images",
        f"/images/{site.gallery.images[-1]}",
        "/datasets/vessels/versions/1",
        "/predictions",
        "/compare?a=vessels:1&b=vessels:2",
    ):
        view.go(address)
        assert "<script>alert" in view.page.locator("main").inner_text()


def test_not_found_page_has_the_common_layout(site: Site, window: Open) -> None:
    view = window()
    assert view.go("/jobs/unknown").status == 404
    assert view.page.locator("h1").inner_text() == "Not found" and view.page.locator("nav a").count() == 7
    assert view.go("/no/such/place").status == 404 and view.page.locator("nav a").count() == 7
    view.wrong = [wrong for wrong in view.wrong if "404" not in wrong]  # the browser logs the status of the page itself
