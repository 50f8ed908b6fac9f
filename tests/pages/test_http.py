"""Pages over HTTP: HTML, JSON, escaping, access."""

from __future__ import annotations

import io
import itertools
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from app.pages import words
from app.pages.pictures import LISTED
from app.pages.rendering import STATIC, TEMPLATES
from tests.pages.conftest import HTML, Site
from tests.pages.gallery import NASTY, broken, vessels
from tests.pages.test_forms import csrf, picture
from tests.pages.test_work_forms import png, post
from topology.metrics import locate_errors


def addresses(site: Site) -> list[str]:
    """One address of every page."""
    g = site.gallery
    first, second = g.predictions["vessels:1"][0], g.predictions["vessels:2"][0]
    return [
        "/",
        "/images",
        "/images/queue",
        f"/images/{g.images[0]}",
        "/datasets",
        "/datasets/vessels/versions/1",
        "/jobs",
        "/jobs?state=running&kind=train",
        "/jobs/new",
        f"/jobs/curves?job={g.jobs['trained-1']}&job={g.jobs['trained-2']}&figure=dice&log=true",
        "/jobs/new?kind=evaluate&model=vessels:1",
        "/project",
        f"/images/{g.images[0]}/delete",
        "/models/vessels/versions/2/delete",
        *(f"/jobs/{job}" for job in g.jobs.values()),
        "/models",
        "/models/vessels/versions/2",
        "/predictions",
        f"/predictions/{first}",
        "/compare",
        "/compare?a=vessels:1&b=vessels@champion",
        f"/compare?a={first}&b={second}",
    ]


def json_address(address: str) -> str:
    path, _, query = address.partition("?")
    return ("/index.json" if path == "/" else path + ".json") + (f"?{query}" if query else "")


class Page(HTMLParser):
    """What a test wants to know of a page: its forms, its headings, whether its tags close."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.problems: list[str] = []
        self.labels: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.feed(text)
        self.problems += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag not in ("meta", "link", "img", "input", "br", "path", "circle", "rect"):
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "label" and facts.get("for"):
            self.labels.add(str(facts["for"]))
        if tag in ("input", "select", "textarea") and facts.get("type") != "hidden" and "hidden" not in facts:
            self.inputs.append(facts | {"inside": "label" if "label" in self.open else None})
        if tag == "img" and "alt" not in facts:
            self.problems.append(f"a picture without alt: {facts.get('src')}")
        if tag == "script" and (not facts.get("src") or not str(facts["src"]).startswith("/static/")):
            self.problems.append("a script that is not ours")
        self.problems += [f"inline {name}" for name in facts if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "circle", "rect"):
            return
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]} ")
        else:
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_every_template_compiles() -> None:
    names = TEMPLATES.list_templates()
    assert len(names) > 15
    for name in names:
        TEMPLATES.get_template(name)


def test_every_page_is_valid_html_with_labels_and_ordered_headings(site: Site) -> None:
    with site.visitor() as browser:
        for address in addresses(site):
            answer = browser.get(address)
            assert answer.status_code == 200, (address, answer.text)
            page = Page(answer.text)
            assert page.problems == [], address
            assert page.headings[0] == 1 and page.headings.count(1) == 1, address
            assert all(after <= before + 1 for before, after in itertools.pairwise(page.headings)), (
                address,
                page.headings,
            )
            bare = [
                each
                for each in page.inputs
                if each.get("id") not in page.labels and not each["inside"] and not each.get("aria-label")
            ]
            assert bare == [], address


def test_every_page_has_a_json_version(site: Site) -> None:
    with site.visitor() as browser, site.program() as program:
        for address in addresses(site):
            facts = program.get(json_address(address))
            assert facts.headers["content-type"] == "application/json", address
            assert json_address(address).replace("&", "&amp;") in browser.get(address).text, (
                f"{address} does not link to its facts"
            )
            assert isinstance(facts.json(), dict) and facts.json()
    with site.program() as program:
        job = program.get(f"/jobs/{site.gallery.jobs['running']}.json").json()
        assert job["job"] == program.get(f"/v1/jobs/{site.gallery.jobs['running']}").json()
        prediction = site.gallery.predictions["vessels:1"][0]
        assert (
            program.get(f"/predictions/{prediction}.json").json()["prediction"]
            == program.get(f"/v1/predictions/{prediction}").json()
        )
        assert (
            program.get("/models/vessels/versions/2.json").json()["version"]
            == program.get("/v1/models/vessels/versions/2").json()
        )
        assert (
            program.get("/datasets/vessels/versions/1.json").json()["version"]
            == program.get("/v1/datasets/vessels/versions/1").json()
        )
        assert (
            program.get(f"/images/{site.gallery.images[0]}.json").json()["image"]
            == program.get(f"/v1/images/{site.gallery.images[0]}").json()
        )


def test_page_shows_the_values_of_its_json(site: Site) -> None:
    with site.visitor() as browser, site.program() as program:
        facts = program.get("/compare.json?a=vessels:1&b=vessels:2").json()
        page = browser.get("/compare?a=vessels:1&b=vessels:2").text
        for row in facts["paired"]:
            assert words.metric_number(row["b"]["mean"], row["metric"]) in page
        job = program.get(f"/jobs/{site.gallery.jobs['running']}.json").json()
        assert (
            words.metric_number(job["validations"][0]["metrics"]["cldice"], "cldice")
            in browser.get(f"/jobs/{site.gallery.jobs['running']}").text
        )


def test_script_in_a_file_name_is_escaped(site: Site) -> None:
    with site.visitor() as browser:
        seen = [
            browser.get(address).text
            for address in (
                "/",
                "/images",
                "/datasets/vessels/versions/1",
                "/predictions",
                "/compare?a=vessels:1&b=vessels:2",
            )
        ]
        last = browser.get(f"/images/{site.gallery.images[-1]}").text
    for page in [*seen, last]:
        assert "&lt;script&gt;alert" in page
        assert NASTY not in page and "<script>alert" not in page


@pytest.mark.parametrize(
    "address",
    [
        "/jobs?state=<script>alert(1)</script>",
        "/compare?a=<script>&b=<b>",
        "/login?next=<script>",
        "/images/<script>alert(1)</script>",
    ],
)
def test_script_in_a_url_is_escaped(site: Site, address: str) -> None:
    with site.visitor() as browser:
        text = browser.get(address).text
    assert "<script>" not in text and "<b>" not in text.replace("<b>clinic</b>", "")


def test_resources_of_another_project_get_404_pages(site: Site) -> None:
    foreign, unknown = site.gallery.foreign, "01936f5e-7c00-7000-8000-00000000dead"
    places = [
        "/images/{image}",
        "/images/{image}/picture.png",
        "/jobs/{job}",
        "/predictions/{prediction}",
        "/predictions/{prediction}/layers/mask.png",
        "/predictions/{prediction}/thumbnail.webp",
        "/predictions/{prediction}/layers/located.json",
        "/compare?a={prediction}&b={prediction}",
        "/predictions/{prediction}/against/{prediction}.png",
        "/images/{image}.json",
        "/jobs/{job}.json",
        "/predictions/{prediction}.json",
    ]
    with site.visitor() as browser, site.program(site.gallery.stranger_key) as owner:
        for place in places:
            theirs, nobodys = (browser.get(place.format(**ids)) for ids in (foreign, dict.fromkeys(foreign, unknown)))
            assert theirs.status_code == nobodys.status_code == 404, place
            assert re.sub(r"[0-9a-f]{32}|[0-9a-f-]{36}", "", theirs.text) == re.sub(
                r"[0-9a-f]{32}|[0-9a-f-]{36}", "", nobodys.text
            )
            assert owner.get(place.format(**foreign)).status_code == 200, place
        for place in (
            "/datasets/hidden/versions/1",
            "/models/hidden/versions/1",
            "/datasets/hidden/versions/1/items/0.webp",
            "/compare?a=hidden:1&b=hidden:1",
        ):
            assert browser.get(place).status_code == 404, place
            assert owner.get(place).status_code == 200, place
        assert "secret-patient" not in "".join(browser.get(address).text for address in addresses(site))


@pytest.mark.parametrize(
    "address",
    [
        "/jobs/x",
        "/images/../x",
        "/models/vessels/versions/x",
        "/models/vessels/versions/99",
        "/datasets/none/versions/1",
        "/static/none.js",
        "/nothing",
    ],
)
def test_not_found_is_html_for_browsers_and_json_for_programs(site: Site, address: str) -> None:
    with site.visitor() as browser, site.program() as program:
        page, problem = browser.get(address), program.get(address)
    assert page.status_code == problem.status_code == 404
    assert (
        page.headers["content-type"].startswith("text/html")
        and "Not found" in page.text
        and page.headers["x-request-id"] in page.text
    )
    assert problem.headers["content-type"] == "application/problem+json"


def test_prediction_layers_equal_stored_artifacts(site: Site) -> None:
    prediction = site.gallery.predictions["vessels:1"][0]
    with site.program() as program:
        drawn = {
            name: np.asarray(
                Pillow.open(io.BytesIO(program.get(f"/predictions/{prediction}/layers/{name}.png").content)).convert(
                    "RGBA"
                )
            )
            for name in ("mask", "skeleton", "reference", "difference")
        }
        stored = {
            name: (
                np.asarray(Pillow.open(io.BytesIO(program.get(f"/v1/predictions/{prediction}/{name}.png").content))) > 0
            )
            for name in ("mask", "skeleton")
        }
        missing = program.get(f"/predictions/{prediction}/layers/probability.png")
    for name, mask in stored.items():
        np.testing.assert_array_equal(drawn[name][..., 3] > 0, mask)
    truth = vessels(0, 128)[1] > 0
    np.testing.assert_array_equal(drawn["reference"][..., 3] > 0, truth)
    np.testing.assert_array_equal(drawn["difference"][..., 3] > 0, truth != stored["mask"])
    assert missing.status_code == 404 and "It has: mask, skeleton, reference, difference" in missing.json()["detail"]


def test_topology_errors_are_listed_and_drawn(site: Site) -> None:
    with site.program() as program:
        facts = program.get(f"/predictions/{site.gallery.predictions['vessels:1'][0]}.json").json()
        errors = program.get(facts["located"]).json()["errors"]
        drawn = program.get(facts["located"].replace(".json", ".svg"))
    truth = vessels(0, 128)[1]
    expected = locate_errors(broken(truth, 0), truth)
    assert len(errors) == len(expected) > 3
    assert {(each["kind"], *each["position"]) for each in errors} == {
        (each["kind"], *each["position"]) for each in expected
    }
    assert all(each["class"] == "vessel" for each in errors)
    assert drawn.headers["content-type"] == "image/svg+xml"
    marks = ET.fromstring(drawn.text).findall("{http://www.w3.org/2000/svg}path")
    assert len(marks) == 2 * len(errors)
    row, column = errors[0]["position"]
    assert f"translate({column + 0.5} {row + 0.5})" in str(marks[0].get("transform"))


def test_roundness_is_shown_with_two_digits(site: Site) -> None:
    pair = [site.gallery.predictions[version][0] for version in ("vessels:1", "vessels:2")]
    with site.program() as program, site.visitor() as browser:
        values = [program.get(f"/v1/predictions/{each}").json()["topology"][0]["roundness"] for each in pair]
        alone, beside = (
            browser.get(f"/predictions/{pair[0]}").text,
            browser.get(f"/compare?a={pair[0]}&b={pair[1]}").text,
        )
    row = r"Roundness, mean over components\s*<small class=\"hint\">0 to 1</small></th>"
    assert re.findall(row + r'<td class="n">([0-9.]+)</td></tr>', alone) == [f"{values[0]:.2f}"]
    assert re.findall(row + r'<td class="n">([0-9.]+)</td><td class="n">([0-9.]+)</td></tr>', beside) == [
        tuple(f"{value:.2f}" for value in values)
    ]


def test_a_prediction_without_a_reference_has_no_errors_to_show(site: Site) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/images").text)
        made = browser.post(
            "/models/vessels/versions/1/try", data={"csrf_token": token}, files={"file": ("new.png", picture(11))}
        ).headers["location"]
        assert browser.get(made + ".json").json()["located"] is None and "Wrong places" not in browser.get(made).text
        for name in ("located.svg", "located.json", "difference.png", "reference.png"):
            assert browser.get(f"{made}/layers/{name}").status_code == 404, name


def test_expectations_stability_and_repair_are_shown(site: Site) -> None:
    ask, sent = (
        "/v1/models/vessels:1/predict",
        {"content": picture(12), "headers": {"Content-Type": "image/png", "Accept": "application/json"}},
    )
    with site.program() as program, site.visitor() as browser:
        found = program.post(ask, **sent).json()["topology"][0]["beta0"]
        violated = program.post(
            ask, params={"expect": f"beta0:{found + 1}", "margins": True, "store": True}, **sent
        ).json()
        repaired = program.post(ask, params={"expect": "beta0:1,beta1:0", "repair": True, "store": True}, **sent).json()
        pages = [browser.get(f"/predictions/{each['id']}").text for each in (violated, repaired)]
        plain = browser.get(f"/predictions/{site.gallery.predictions['vessels:1'][0]}").text
    assert (
        ">violated<" in pages[0]
        and "satisfied" in pages[1]
        and not Page(pages[0]).problems
        and not Page(pages[1]).problems
    )
    assert f'<td class="n">{found + 1}</td><td class="n">{found}</td>' in pages[0]
    for feature in violated["topology"][0]["margins"]["features"][:8]:
        assert feature["sentence"] in pages[0]
    assert f"{repaired['repair']['edit_count']} edit" in pages[1] and repaired["repair"]["edits"][0]["kind"] in pages[1]
    assert "Simple points" in pages[1] and "Uncertainty" in pages[1]
    assert not {"Expectation", "Repair", "Stability of features"} & set(re.findall(r"<h2[^>]*>([^<]*)</h2>", plain))


def test_comparison_lists_equal_dice_with_different_topology_first(site: Site) -> None:
    with site.program() as program:
        facts = program.get("/compare.json?a=vessels:1&b=vessels:2").json()
    assert facts["pairs"] == 4 and facts["cases"][0]["hidden"]
    assert [case["hidden"] for case in facts["cases"]] == sorted(
        (case["hidden"] for case in facts["cases"]), reverse=True
    )
    paired = {row["metric"]: row for row in facts["paired"]}
    assert paired["beta0_error"]["difference"]["mean"] == pytest.approx(
        np.mean([case["b"]["beta0_error"] - case["a"]["beta0_error"] for case in facts["cases"]])
    )
    assert paired["beta0_error"]["b_better"] + paired["beta0_error"]["b_worse"] <= 4
    for row in paired.values():
        assert row["difference"]["low"] <= row["difference"]["mean"] <= row["difference"]["high"]
    assert facts["shown"]["case"]["item"] == facts["cases"][0]["item"]


def test_predictions_of_two_images_are_not_compared(site: Site) -> None:
    one, other = site.gallery.predictions["vessels:1"][:2]
    with site.program() as program:
        for path in (
            f"/compare.json?a={one}&b={other}",
            f"/predictions/{one}/against/{other}.png",
            f"/compare.json?a={one}&b=vessels:1",
        ):
            assert program.get(path).status_code == 422, path


def test_lists_are_paged_without_gaps(site: Site) -> None:
    with site.visitor() as browser:
        first = browser.get("/predictions?limit=3")
        more = re.search(r'href="(/predictions\?[^"]+)" rel="next"', first.text).group(1).replace("&amp;", "&")
        second = browser.get(more)
        ids = [set(re.findall(r"/predictions/([0-9a-f-]{36})", page.text)) for page in (first, second)]
        assert len(ids[0]) == len(ids[1]) == 3 and not ids[0] & ids[1]
        assert browser.get("/predictions?cursor=forged").status_code == 400


def test_static_files_are_cached_by_digest(site: Site) -> None:
    with site.visitor(None) as browser:
        address = re.search(r'href="(/static/style\.css\?v=\w+)"', browser.get("/login").text).group(1)
        kept, plain = browser.get(address), browser.get("/static/style.css")
        assert "immutable" in kept.headers["cache-control"] and plain.headers["cache-control"] == "no-cache"
        assert browser.get("/static/style.css", headers={"If-None-Match": plain.headers["etag"]}).status_code == 304
        for path in ("/static/..%2fviews.py", "/static/../views.py", "/static/"):
            assert browser.get(path).status_code in (303, 404), path


def test_empty_page_says_what_to_do_first(site: Site) -> None:
    from app.store import keys

    with site.services.database.write() as session:
        key = keys.create(session, project="empty", name="new", role="engineer")
    with site.visitor(key) as browser:
        page = browser.get("/").text
        assert "First steps" in page and f"{site.url}/v1/datasets" in page
        for address in ("/images", "/datasets", "/jobs", "/models", "/predictions", "/compare"):
            assert browser.get(address).status_code == 200


def test_content_security_policy_allows_only_own_files(site: Site) -> None:
    with site.visitor() as browser:
        policy = browser.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_pages_need_the_read_scope_of_their_content(site: Site) -> None:
    from app.store import keys

    with site.services.database.write() as session:
        key = keys.create(session, project="clinic", name="operator", role="operator")
    with site.visitor(key) as browser:
        home = browser.get("/")
        assert (
            home.status_code == 200
            and "gpu-1:4711" in home.text
            and "retina" not in home.text
            and "Train vessels" not in home.text
        )
        for address in ("/images", "/jobs", "/models", "/predictions", f"/images/{site.gallery.images[0]}/picture.png"):
            assert browser.get(address).status_code == 403, address


def test_page_json_contains_no_nan(site: Site) -> None:
    with site.program() as program:
        for address in addresses(site):
            text = program.get(json_address(address)).text
            json.loads(text, parse_constant=lambda name, at=address: pytest.fail(f"{name} in {at}"))


def test_html_is_sent_only_when_accepted(site: Site) -> None:
    with httpx.Client(base_url=site.url, headers={"Authorization": f"Bearer {site.gallery.key}"} | HTML) as client:
        assert (
            "text/html" in client.get("/v1/jobs/x").headers["content-type"]
            or client.get("/v1/jobs/x").status_code == 422
        )
        assert client.get("/v1/jobs/x").headers["content-type"] == "application/problem+json", (
            "the API never answers a page"
        )


def test_name_alone_and_a_trailing_slash_lead_to_the_page(site: Site) -> None:
    with site.visitor() as browser:
        assert browser.get("/models/vessels").headers["location"] == "/models/vessels/versions/2"
        assert browser.get("/datasets/vessels").headers["location"] == "/datasets/vessels/versions/1"
        slash = browser.get("/jobs/?state=failed")
        assert (slash.status_code, slash.headers["location"]) == (303, "/jobs?state=failed")
        away = browser.get(f"{site.url}//elsewhere.example/")
        assert away.headers["location"] == "/elsewhere.example", "never to another host"
        assert browser.get("/models/nobody").status_code == 404


def test_breadcrumbs_end_in_the_page_and_the_header_names_the_key(site: Site) -> None:
    with site.visitor() as browser:
        for address, here in (
            ("/models/vessels/versions/2", "vessels:2"),
            (f"/images/{site.gallery.images[0]}", "retina-01.png"),
        ):
            text = browser.get(address).text
            assert f'<span aria-current="page">{here}</span></li></ol></nav>' in text and "engineer, admin" in text


def test_failed_job_shows_its_reason_and_last_words_before_anything_else(site: Site) -> None:
    with site.visitor() as browser:
        text = browser.get(f"/jobs/{site.gallery.jobs['failed']}").text
    assert "<title>Failed: Train vessels on vessels@1" in text
    assert text.index("This job failed.") < text.index("Its last words") < text.index("Training loss")


def test_jobs_are_told_apart_by_loss_short_id_and_who(site: Site) -> None:
    with site.visitor() as browser:
        text = browser.get("/jobs").text
    for job in site.gallery.jobs.values():
        assert f">{str(job)[-6:]}</span>" in text
    assert "cross_entropy + dice + 0.5 skeleton_hard_pixels · unet" in text and "ts_ab12cd34" in text


def test_downloads_are_named_after_image_and_model(site: Site) -> None:
    with site.program() as program:
        answer = program.get(f"/v1/predictions/{site.gallery.predictions['vessels:1'][0]}/mask.png")
    assert 'filename="retina-01.vessels-1.mask.png"' in answer.headers["content-disposition"]


def test_models_that_read_different_images_are_said_to_be_incomparable() -> None:
    from app.pages.comparison import _unlike
    from app.store.tables import ModelVersion

    def reads(dimensions: int, channels: int) -> ModelVersion:
        return ModelVersion(manifest={"dimensions": dimensions, "channels": channels})

    assert "cannot be compared" in (_unlike(reads(2, 1), reads(3, 1)) or "")
    assert "2 channels" in (_unlike(reads(2, 1), reads(2, 2)) or "")
    assert _unlike(reads(2, 1), reads(2, 3)) is None and _unlike(reads(3, 1), reads(3, 1)) is None


def test_lists_weigh_little(site: Site) -> None:
    """A page of pictures is at most 400 kB, and without them 150 kB."""
    scripts = sum(len(content) for name, content in STATIC.items() if name.endswith((".js", ".css")))
    grain = vessels(0, 640)[0]
    with site.visitor() as browser:
        image = post(browser, "/images", "/images", files={"file": ("grain.png", png(grain))}).headers["location"]
        picture = browser.get(f"{image}/thumbnail.webp")
        assert picture.headers["content-type"] == "image/webp"
        assert Pillow.open(io.BytesIO(picture.content)).size == (222, 222)
        assert LISTED * len(picture.content) < 400_000
        for address in addresses(site):
            assert len(browser.get(address).content) + scripts < 150_000, address
