"""Signing in by an OpenID provider, choosing among projects, and signing out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select

from app.http import attempts
from app.http.sessions import COOKIE
from app.oidc import provider
from app.settings import Settings
from app.store import members, projects
from app.store.tables import AuditLine, PersonSession, UsedState
from tests.gateway import Gateway
from tests.issuer import CLIENT, SECRET, Issuer, issuing
from tests.pages.conftest import HTML
from tests.services import wait_for

START, CALLBACK = "/login/openid", "/login/openid/callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        yield running


@pytest.fixture(autouse=True)
def usual(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The provider as it is at first, which may be asked again at any time."""
    monkeypatch.setattr(provider, "REFETCH_S", 0)
    before = {name: value.copy() if isinstance(value, dict) else value for name, value in vars(issuer).items()}
    yield
    vars(issuer).update(before)


def configured(issuer: Issuer, **more: Any) -> dict[str, Any]:
    return {
        "oidc_issuer": issuer.url,
        "oidc_client_id": CLIENT,
        "oidc_client_secret": SECRET,
        "oidc_name": "Hospital <1>",
        "key_cache_s": 0.2,
        "wrong_keys_a_minute": 100_000,
    } | more


@pytest.fixture(scope="module")
def with_people(module_settings: Settings, issuer: Issuer, serve: Callable[..., Gateway]) -> Gateway:
    return serve(Settings.model_validate(module_settings.model_dump() | configured(issuer)))


@pytest.fixture
def gateway(with_people: Gateway) -> Gateway:
    return with_people.new_project()


@pytest.fixture
def browser(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers=HTML, timeout=30) as client:
        yield client


def let_in(gateway: Gateway, issuer: Issuer, role: str = "viewer", project: str | None = None) -> str:
    """Make whoever signs in next a member of the gateway's project, or of another; the name of the project."""
    issuer.claims = issuer.claims | {
        "sub": f"ana-{gateway.project_id}",
        "email": f"a{gateway.project_id}@hospital.example",
    }
    with gateway.database.write() as session:
        row = (
            projects.get(session, gateway.project_id, gateway.project_id)
            if project is None
            else projects.ensure(session, project)
        )
        members.add(session, project_id=row.id, kind="subject", value=issuer.claims["sub"], role=role)
        return row.name


def sent_back(browser: httpx.Client, next: str = "/") -> str:
    """Begin a sign-in and let the provider answer: the address that it sends the browser to."""
    begun = browser.get(START, params={"next": next})
    assert begun.status_code == 303, begun.text
    return httpx.get(begun.headers["location"]).headers["location"]


def sign_in(browser: httpx.Client, next: str = "/") -> httpx.Response:
    answer = browser.get(sent_back(browser, next))
    assert answer.status_code == 200 and COOKIE in browser.cookies, answer.text
    return answer


def goes_to(page: str) -> str:
    return re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', page).group(1).replace("&amp;", "&")


def token_of(page: str) -> str:
    return re.search(r'name="csrf_token" value="([^"]+)"', page).group(1)


def test_the_sign_in_page_has_the_button_only_with_a_provider(browser: httpx.Client, shared_gateway: Gateway) -> None:
    assert "Sign in with Hospital &lt;1&gt;" in browser.get("/login").text
    without = httpx.get(f"{shared_gateway.url}/login", headers=HTML).text
    assert "Sign in" in without and START not in without
    for path in (START, CALLBACK):
        assert httpx.get(shared_gateway.url + path).status_code == 404


def test_a_member_signs_in_and_is_where_they_wanted_to_go(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    name = let_in(gateway, issuer)
    turned_away = browser.get("/images?sort=name")
    login = browser.get(turned_away.headers["location"]).text
    begun = browser.get(re.search(rf'href="({START}[^"]+)"', login).group(1))
    address = urlsplit(begun.headers["location"])
    asked = {each: values[0] for each, values in parse_qs(address.query).items()}
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{issuer.url}/authorize"
    assert asked.pop("state") != asked.pop("nonce") and re.fullmatch(r"[\w-]{43}", asked.pop("code_challenge"))
    assert asked == {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": gateway.url + CALLBACK,
        "scope": "openid profile email",
        "code_challenge_method": "S256",
    }
    kept = begun.headers["set-cookie"]
    assert re.search(r"HttpOnly; Max-Age=600; Path=/login/openid; SameSite=lax", kept) and begun.is_redirect
    answer = browser.get(httpx.get(begun.headers["location"]).headers["location"])
    assert answer.status_code == 200 and goes_to(answer.text) == "/images?sort=name"
    cookies = answer.headers.get_list("set-cookie")
    assert re.search(rf"^{COOKIE}=\S+; HttpOnly; Max-Age=\d+; Path=/; SameSite=strict$", cookies[0])
    assert cookies[1].startswith(f'{attempts.COOKIE}=""') and answer.headers["referrer-policy"] == "no-referrer"
    page = browser.get("/images?sort=name")
    assert page.status_code == 200 and f"<b>{name}</b>" in page.text
    assert f"a{gateway.project_id}@hospital.example, viewer" in page.text and ">change<" not in page.text
    with gateway.database.read() as session:
        (line,) = session.scalars(select(AuditLine).where(AuditLine.project_id == gateway.project_id))
    assert (line.what, line.object) == ("session.begin", issuer.claims["sub"])


def test_the_code_goes_with_the_secret_as_the_provider_wants_it(
    issuer: Issuer, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    public = serve(make_settings(**configured(issuer, oidc_client_secret=None)))
    secret = serve(make_settings(**configured(issuer)))
    for gateway, ways, expected in (
        (public, ["client_secret_basic"], {"client_id": CLIENT}),
        (secret, ["client_secret_basic", "client_secret_post"], {}),
        (secret, ["client_secret_post"], {"client_id": CLIENT, "client_secret": SECRET}),
    ):
        issuer.changed = {"token_endpoint_auth_methods_supported": ways}
        gateway.services.provider._fetched_at = -float("inf")
        let_in(gateway.new_project(), issuer)
        with httpx.Client(base_url=gateway.url, headers=HTML) as browser:
            sign_in(browser)
        form, authorization = issuer.forms[-1]
        assert {name: form[name] for name in form if name.startswith("client_")} == expected
        assert authorization.startswith("Basic ") == (not expected) and len(form["code_verifier"]) == 44


def refused(browser: httpx.Client, answer: httpx.Response, status: int, reason: str) -> None:
    """The sign-in page says why, and nobody is signed in."""
    assert answer.status_code == status and reason in answer.text, (answer.status_code, answer.text)
    assert COOKIE not in browser.cookies and "Sign in with Hospital" in answer.text
    assert browser.get("/").status_code == 303


def test_a_state_is_good_once(gateway: Gateway, browser: httpx.Client, issuer: Issuer) -> None:
    let_in(gateway, issuer)
    address = sent_back(browser)
    cookie = browser.cookies[attempts.COOKIE]
    browser.get(address)
    assert COOKIE in browser.cookies and attempts.COOKIE not in browser.cookies
    exchanged = len(issuer.forms)
    for again in ({}, {attempts.COOKIE: cookie}):
        with httpx.Client(base_url=gateway.url, headers=HTML, cookies=again) as thief:
            refused(thief, thief.get(address), 401, "was not begun in this browser, is over")
    assert len(issuer.forms) == exchanged, "no code was sent to the provider"


def test_a_state_of_another_browser_or_of_long_ago_is_refused(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(gateway, issuer)
    with httpx.Client(base_url=gateway.url, headers=HTML) as other:
        foreign = sent_back(other)
    sent_back(browser)
    refused(browser, browser.get(foreign), 401, "not begun in this browser")
    refused(browser, browser.get(CALLBACK), 401, "not begun in this browser")
    monkeypatch.setattr(attempts, "LASTS_S", -1)
    begun = browser.get(START)
    old = httpx.get(begun.headers["location"]).headers["location"]
    cookie = begun.headers["set-cookie"].partition(";")[0].partition("=")[2]
    with httpx.Client(base_url=gateway.url, headers=HTML, cookies={attempts.COOKIE: cookie}) as late:
        refused(late, late.get(old), 401, "took too long")
    word, _, rest = cookie.split(".", 2)
    longer = f"{word}.{int(time.time()) + 99}.{rest}"
    with httpx.Client(base_url=gateway.url, headers=HTML, cookies={attempts.COOKIE: longer}) as forger:
        refused(forger, forger.get(old), 401, "not begun in this browser")


def test_a_wrong_id_token_signs_nobody_in(gateway: Gateway, browser: httpx.Client, issuer: Issuer) -> None:
    let_in(gateway, issuer)
    now = int(time.time())
    for claims, reason in (
        ({"nonce": "another"}, "made for another sign-in (`nonce`)"),
        ({"nonce": None}, "made for another sign-in (`nonce`)"),
        ({"aud": "payroll"}, "audience"),
        ({"azp": "payroll"}, "`azp`"),
        ({"iss": "https://other.example"}, "another provider"),
        ({"exp": now - 99}, "has expired"),
        ({"algorithm": "RS512"}, "not signed with one of"),
    ):
        issuer.token_claims = claims
        refused(browser, browser.get(sent_back(browser)), 401, reason)


def test_what_the_provider_refuses_is_told(gateway: Gateway, browser: httpx.Client, issuer: Issuer) -> None:
    let_in(gateway, issuer)
    address = sent_back(browser)
    denied = address.partition("code=")[0] + address.partition("&")[2] + "&error=access_denied<b>&error_description=x"
    refused(browser, browser.get(denied), 403, "did not sign you in: access_deniedb.")
    refused(browser, browser.get(sent_back(browser).replace("code=", "code=x")), 401, "did not accept the code")
    mixed_up = re.sub("iss=[^&]+", "iss=https://other.example", sent_back(browser))
    refused(browser, browser.get(mixed_up), 401, "another provider than the one that was asked")


def test_a_provider_that_is_away_is_named_and_keys_still_sign_in(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    let_in(gateway, issuer)
    address = sent_back(browser)
    issuer.away = True
    refused(browser, browser.get(address), 503, "does not answer as it should")
    gateway.services.provider._fetched_at = -float("inf")
    refused(browser, browser.get(START), 503, issuer.url)
    assert browser.post("/login", data={"key": gateway.keys["viewer"]}).status_code == 303
    assert browser.get("/").status_code == 200


def test_who_is_no_member_is_told_so_and_has_no_session(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    issuer.claims = {"sub": "stranger-1"}
    refused(browser, browser.get(sent_back(browser)), 403, "stranger-1, but you are no member")
    with gateway.database.read() as session:
        assert session.scalars(select(PersonSession).where(PersonSession.subject == "stranger-1")).all() == []


@pytest.mark.parametrize(
    "next_", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "/\t/x"]
)
def test_a_sign_in_never_ends_on_another_site(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer, next_: str
) -> None:
    let_in(gateway, issuer)
    assert goes_to(sign_in(browser, next_).text) == "/"


def test_groups_come_from_the_address_for_user_information(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    issuer.claims = {"sub": "thin-1"}
    group = f"ward {gateway.project_id}"
    with gateway.database.write() as session:
        members.add(session, project_id=gateway.project_id, kind="group", value=group, role="viewer")
    issuer.told_later = {"groups": [group], "sub": "somebody-else"}
    refused(browser, browser.get(sent_back(browser)), 403, "no member")
    issuer.told_later = {"groups": [group]}
    sign_in(browser)
    assert browser.get("/").status_code == 200


def test_roles_in_the_browser_are_those_of_keys(gateway: Gateway, browser: httpx.Client, issuer: Issuer) -> None:
    let_in(gateway, issuer, "engineer")
    sign_in(browser)
    with httpx.Client(base_url=gateway.url, headers=HTML) as by_key:
        by_key.post("/login", data={"key": gateway.keys["engineer"]})
        for path in ("/", "/images", "/datasets", "/jobs", "/jobs/new", "/models", "/predictions", "/project"):
            assert browser.get(path).status_code == by_key.get(path).status_code, path
    assert browser.get("/project").status_code == 403
    form = {"files": {"file": ("x.png", b"no image")}}
    assert browser.post("/images", **form).status_code == 403, "without the token of the form"
    token = {"csrf_token": token_of(browser.get("/images").text)}
    assert browser.post("/images", data=token, **form).status_code != 403
    elsewhere = {"Origin": "https://elsewhere.example"}
    assert browser.post("/images", data=token, headers=elsewhere, **form).status_code == 403


def test_signing_out_ends_the_session_for_a_copy_of_its_cookie(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    let_in(gateway, issuer)
    sign_in(browser)
    copied = browser.cookies[COOKIE]
    left = browser.post("/logout", data={"csrf_token": token_of(browser.get("/").text)})
    assert left.headers["location"] == "/login" and COOKIE not in browser.cookies
    with gateway.database.read() as session:
        assert session.scalars(select(PersonSession).where(PersonSession.project_id == gateway.project_id)).all() == []
    answer = httpx.get(f"{gateway.url}/v1/images", headers={"Cookie": f"{COOKIE}={copied}"})
    assert answer.status_code == 401 and "Sign in again" in answer.json()["detail"]


def test_a_session_ends_with_the_membership_and_with_its_time(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    let_in(gateway, issuer)
    sign_in(browser)
    assert browser.get("/").status_code == 200
    with gateway.database.write() as session:
        row = session.scalars(select(PersonSession).where(PersonSession.project_id == gateway.project_id)).one()
        row.until = row.created_at
    wait_for(lambda: browser.get("/").status_code == 303, seconds=3, what="the session to end")
    sign_in(browser)
    (member,) = gateway.ask("GET", "/v1/members", "admin").json()["items"]
    with gateway.database.write() as session:
        members.remove(session, UUID(member["id"]))
    wait_for(lambda: browser.get("/").status_code == 303, seconds=3, what="the member to be sent away")
    assert COOKIE not in browser.cookies


def test_a_session_is_refused_when_the_provider_is_no_longer_configured(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer, serve: Callable[..., Gateway]
) -> None:
    let_in(gateway, issuer)
    sign_in(browser)
    without = serve(gateway.settings.model_copy(update={"oidc_issuer": None}))
    answer = httpx.get(f"{without.url}/v1/images", headers={"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"})
    assert answer.status_code == 401


def test_a_member_of_several_projects_chooses_after_signing_in_and_later(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    mine = let_in(gateway, issuer, "viewer")
    other = let_in(gateway, issuer, "engineer", project=f"zz-{mine}")
    assert goes_to(sign_in(browser, "/models").text) == "/session/project?next=%2Fmodels"
    page = browser.get("/session/project?next=%2Fmodels").text
    assert re.findall(r"<option( selected)?>([^<]+)", page) == [(" selected", mine), ("", other)]
    before, form = browser.cookies[COOKIE], token_of(page)
    with gateway.database.read() as session:
        (first,) = session.scalars(select(PersonSession).where(PersonSession.project_id == gateway.project_id))
    for wrong in ("nothing", "elsewhere"):
        told = browser.post("/session/project", data={"csrf_token": form, "project": wrong})
        assert told.status_code == 403 and mine in told.text
    chosen = browser.post("/session/project", data={"csrf_token": form, "project": other, "next": "/models"})
    assert chosen.status_code == 303 and chosen.headers["location"] == "/models"
    shown = browser.get("/models").text
    assert f"<b>{other}</b>" in shown and "engineer" in shown and 'href="/session/project">change<' in shown
    with gateway.database.read() as session:
        second = session.scalars(select(PersonSession).where(PersonSession.subject == issuer.claims["sub"])).one()
        assert second.until == first.until, "choosing does not make a session longer"
    assert browser.post("/session/project", data={"csrf_token": form, "project": mine}).status_code == 403
    old = httpx.get(f"{gateway.url}/v1/images", headers={"Cookie": f"{COOKIE}={before}"})
    assert old.status_code == 401


def test_an_administrator_adds_changes_and_removes_members_on_the_page_of_the_project(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    let_in(gateway, issuer, "admin")
    sign_in(browser)
    page = browser.get("/project").text
    assert "people of Hospital &lt;1&gt;" in page and issuer.claims["sub"] in page
    token = {"csrf_token": token_of(page)}
    new = {"kind": "email", "value": " Ben@hospital.example ", "role": "viewer"}
    assert browser.post("/project/members", data=token | new).headers["location"] == "/project"
    told = browser.post("/project/members", data=token | new)
    assert told.status_code == 409 and "already, as viewer" in told.text
    assert browser.post("/project/members", data=token | new | {"value": "ben"}).status_code == 422
    assert browser.post("/project/members", data=token | new | {"role": "operator"}).status_code == 403
    ben, _ = browser.get("/project.json").json()["members"]
    assert (ben["kind"], ben["value"], ben["role"]) == ("email", "ben@hospital.example", "viewer")
    assert browser.post(f"/project/members/{ben['id']}/role", data=token | {"role": "engineer"}).status_code == 303
    assert browser.get("/project.json").json()["members"][0]["role"] == "engineer"
    for status in (303, 404):
        assert browser.post(f"/project/members/{ben['id']}/remove", data=token).status_code == status
    assert "ben@hospital" not in browser.get("/project").text.partition('id="retention"')[0]


def test_keys_and_bearer_tokens_choose_no_project_in_the_browser(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    name = let_in(gateway, issuer)
    token = {"Authorization": f"Bearer {issuer.token()}"}
    answer = browser.post("/session/project", data={"project": name}, headers=token)
    assert answer.status_code == 403 and COOKIE not in browser.cookies
    sign_in(browser)
    assert browser.post("/session/project", data={"project": name}, headers=token).status_code == 403
    browser.post("/login", data={"key": gateway.keys["viewer"]})
    page = browser.get("/session/project").text
    assert f"this one is of {name}" in page and "<select" not in page


def test_states_and_sessions_that_have_ended_are_forgotten(
    gateway: Gateway, browser: httpx.Client, issuer: Issuer
) -> None:
    let_in(gateway, issuer)
    sign_in(browser)
    with gateway.database.write() as session:
        for row in (*session.scalars(select(UsedState)), *session.scalars(select(PersonSession))):
            row.until = row.until.replace(year=2001)
    sign_in(browser)
    with gateway.database.read() as session:
        assert len(session.scalars(select(UsedState)).all()) == 1
        assert len(session.scalars(select(PersonSession)).all()) == 1


def test_behind_a_proxy_with_tls_and_a_prefix_the_addresses_are_those_of_the_browser(
    issuer: Issuer, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(**configured(issuer, secure_cookies=True, root_path="/masks")))
    let_in(gateway.new_project(), issuer)
    with httpx.Client(base_url=gateway.url, headers=HTML) as browser:
        begun = browser.get(f"/masks{START}")
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["redirect_uri"] == [f"{gateway.url.replace('http:', 'https:')}/masks{CALLBACK}"]
        assert "Path=/masks/login/openid; SameSite=lax; Secure" in begun.headers["set-cookie"]
        back = urlsplit(httpx.get(begun.headers["location"]).headers["location"])
        cookie = {"Cookie": begun.headers["set-cookie"].partition(";")[0]}
        answer = browser.get(f"{back.path}?{back.query}", headers=cookie)
        assert answer.status_code == 200 and goes_to(answer.text) == "/masks/"
        assert 'href="/masks/"' in answer.text
        assert "Path=/masks; SameSite=strict; Secure" in answer.headers.get_list("set-cookie")[0]


@pytest.mark.browser
def test_a_browser_that_comes_back_from_another_site_is_signed_in(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], chromium: Any
) -> None:
    """The provider is `localhost` and the gateway 127.0.0.1, which to a browser are two sites."""
    from tests.pages.test_accessibility import findings  # it skips whoever imports it where axe is missing

    with issuing("localhost") as issuer:
        issuer.asks = True
        gateway = serve(make_settings(**configured(issuer)))
        mine = let_in(gateway, issuer, "viewer")
        other = let_in(gateway, issuer, "admin", project="zz-lab")
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{gateway.url}/models")
        assert findings(page) == []
        page.get_by_role("link", name="Sign in with Hospital <1>").click()
        page.wait_for_url("http://localhost:*/**")
        page.get_by_role("link", name="Agree").click()
        page.get_by_role("heading", name="Choose a project").wait_for()
        assert findings(page) == []
        assert page.get_by_label("Project").input_value() == mine
        page.get_by_label("Project").select_option(other)
        page.get_by_role("button", name="Go on").click()
        page.wait_for_url("**/models")
        assert page.get_by_text(f"Project {other}").is_visible()
        page.goto(f"{gateway.url}/project")
        assert page.get_by_label(f"Role of ana-{gateway.project_id}", exact=True).input_value() == "admin"
        assert findings(page) == []
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
        page.goto(f"{gateway.url}/models")
        assert page.url.endswith("/login?next=%2Fmodels")
        context.close()
