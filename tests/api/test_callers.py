"""Authentication: keys, browser sessions, and the open service on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import Response
from pydantic import ValidationError

from app.errors import Problem, TooManyWrongKeys, Unauthenticated
from app.http import sessions, wrong_keys
from app.settings import Settings
from app.store import keys
from app.store.tables import ApiKey, now
from tests.gateway import Gateway, told
from tests.images import noise_png
from tests.services import wait_for

NEW_KEY = {"name": "new", "role": "viewer"}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Basic YWRtaW46YWRtaW4=",
        "Bearer ts_",
        "Bearer " + "x" * 30_000,
        "Bearer ts_aaaaaaaa_" + "a" * 43,
        "Bearer ts_aaaaaaaa_" + "a" * 42,
        "bearer  ts_aaaaaaaa_" + "a" * 43,
    ],
)
def test_malformed_keys_all_get_the_same_answer(shared_gateway: Gateway, header: str) -> None:
    answer = shared_gateway.http.get("/v1/images", headers={"Authorization": header})
    assert told(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="toposerve"'
    without = shared_gateway.http.get("/v1/images").json()
    assert {**answer.json(), "request_id": ""} == {**without, "request_id": ""}


def test_unknown_wrong_revoked_and_expired_keys_get_the_same_answer(gateway: Gateway) -> None:
    right = gateway.keys["admin"]
    wrong = right[:-1] + ("a" if right[-1] != "a" else "b")
    bodies = []
    for token in (wrong, "ts_aaaaaaaa_" + "a" * 43, gateway.keys["revoked"], gateway.keys["expired"]):
        answer = gateway.http.get("/v1/images", headers={"Authorization": f"Bearer {token}"})
        assert told(answer) == (401, "unauthenticated")
        bodies.append({**answer.json(), "request_id": ""})
    assert all(body == bodies[0] for body in bodies)


def test_non_text_or_repeated_authorization_headers_are_refused(sqlite_gateway: Gateway) -> None:
    good = f"Bearer {sqlite_gateway.keys['admin']}".encode()
    for lines in (
        b"Authorization: Bearer \xff\xfe\xfd\r\n",
        b"Authorization: " + good + b"\r\nAuthorization: " + good + b"\r\n",
    ):
        answer = sqlite_gateway.raw(b"GET /v1/images HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 401"), answer


def test_key_in_the_url_is_refused_even_with_a_valid_header(sqlite_gateway: Gateway) -> None:
    answer = sqlite_gateway.ask("GET", "/v1/images", params={"key": sqlite_gateway.keys["admin"]})
    assert told(answer) == (401, "unauthenticated") and "Revoke" in answer.json()["detail"]


def test_only_the_digest_of_a_secret_is_stored(gateway: Gateway) -> None:
    secret = gateway.keys["admin"][12:]
    row = gateway.key_row("admin")
    stored = " ".join(str(getattr(row, column.key)) for column in ApiKey.__table__.columns)
    assert secret not in stored and row.digest == keys.digest(secret) and len(secret) == 43


def test_revoked_key_is_refused_within_the_cache_time(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(key_cache_s=0.3))
    assert gateway.ask("GET", "/v1/images", "viewer").status_code == 200
    with gateway.database.write() as session:  # another process: this gateway's cache is not told
        keys.revoke(session, gateway.keys["viewer"][3:11])
    started = time.monotonic()
    wait_for(
        lambda: gateway.ask("GET", "/v1/images", "viewer").status_code == 401, seconds=3, what="the key to be refused"
    )
    assert time.monotonic() - started < 1.5
    assert gateway.ask("GET", "/v1/images", "engineer").status_code == 200


def test_cached_key_is_refused_once_expired(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(key_cache_s=60))
    with gateway.database.write() as session:
        gateway.keys["brief"] = keys.create(
            session, project="clinic", name="brief", role="viewer", expires_at=now() + timedelta(seconds=0.6)
        )
    assert gateway.ask("GET", "/v1/images", "brief").status_code == 200
    wait_for(lambda: gateway.ask("GET", "/v1/images", "brief").status_code == 401, seconds=3, what="the key to expire")


def test_last_use_of_a_key_is_written_at_most_once_a_minute(gateway: Gateway) -> None:
    assert gateway.key_row("viewer").last_used_at is None
    gateway.ask("GET", "/v1/images", "viewer")
    first = gateway.key_row("viewer").last_used_at
    assert first is not None and now() - first < timedelta(seconds=5)
    gateway.services.key_cache.forget()
    gateway.ask("GET", "/v1/images", "viewer")
    assert gateway.key_row("viewer").last_used_at == first
    with gateway.database.write() as session:
        session.get_one(ApiKey, gateway.key_row("viewer").id).last_used_at = first - timedelta(minutes=2)
    gateway.services.key_cache.forget()
    gateway.ask("GET", "/v1/images", "viewer")
    assert gateway.key_row("viewer").last_used_at > first


# Browsers


def browser(gateway: Gateway, who: str = "engineer", *, seconds: float = 60, **headers: str) -> httpx.Client:
    """A browser that is signed in as a key."""
    cookie = sessions.sign_session(gateway.services, gateway.keys[who][3:11], time.time() + seconds)
    return httpx.Client(base_url=gateway.url, cookies={sessions.COOKIE: cookie}, headers=headers)


def test_session_can_read_but_needs_a_csrf_token_to_write(gateway: Gateway) -> None:
    with browser(gateway) as client:
        assert client.get("/v1/images").status_code == 200
        upload: dict[str, Any] = {"content": noise_png(), "headers": {"Content-Type": "image/png"}}
        assert told(client.post("/v1/images", **upload)) == (403, "csrf")
        for wrong in ("", "x", sessions.csrf_token(gateway.services, "another session")):
            upload["headers"][sessions.CSRF_HEADER] = wrong
            assert told(client.post("/v1/images", **upload)) == (403, "csrf")
        upload["headers"][sessions.CSRF_HEADER] = sessions.csrf_token(gateway.services, client.cookies[sessions.COOKIE])
        assert client.post("/v1/images", **upload).status_code == 201
        for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert told(client.post("/v1/images", content=noise_png(), headers=upload["headers"] | foreign)) == (
                403,
                "csrf",
            )


def test_a_session_has_the_scopes_of_its_key_and_ends_with_it(gateway: Gateway) -> None:
    with browser(gateway, "viewer") as client:
        assert told(client.get("/v1/keys")) == (403, "forbidden")
        with gateway.database.write() as session:
            keys.revoke(session, gateway.keys["viewer"][3:11])
        gateway.services.key_cache.forget()
        assert told(client.get("/v1/images")) == (401, "unauthenticated")


def test_expired_or_forged_session_is_refused(sqlite_gateway: Gateway) -> None:
    with browser(sqlite_gateway, seconds=-1) as client:
        assert told(client.get("/v1/images")) == (401, "unauthenticated")
    good = sessions.sign_session(sqlite_gateway.services, sqlite_gateway.keys["viewer"][3:11], time.time() + 60)
    prefix, until, word, signature = good.split(".")
    for forged in (
        "",
        "..",
        "x",
        f"{sqlite_gateway.keys['admin'][3:11]}.{until}.{word}.{signature}",
        f"{prefix}.{int(until) + 9}.{word}.{signature}",
        f"{prefix}.{until}.{word}.",
        f"{prefix}.{until}.{signature}",
    ):
        answer = sqlite_gateway.http.get("/v1/images", headers={"Cookie": f"{sessions.COOKIE}={forged}"})
        assert told(answer) == (401, "unauthenticated"), forged


def test_bearer_key_takes_precedence_over_cookie(sqlite_gateway: Gateway) -> None:
    with browser(sqlite_gateway, "viewer") as client:
        assert (
            client.get("/v1/keys", headers={"Authorization": f"Bearer {sqlite_gateway.keys['admin']}"}).status_code
            == 200
        )
        assert told(client.get("/v1/images", headers={"Authorization": "Bearer nothing"})) == (401, "unauthenticated")


def test_session_cookie_is_httponly_and_samesite(sqlite_gateway: Gateway) -> None:
    response = Response()
    assert sessions.sign_in(sqlite_gateway.services, response, sqlite_gateway.keys["viewer"])
    cookie = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {
        part.strip() for part in cookie.split(";")
    } and sqlite_gateway.keys["viewer"][12:] not in cookie
    for bad in ("", "x", sqlite_gateway.keys["revoked"], sqlite_gateway.keys["viewer"] + "x"):
        refused = Response()
        assert not sessions.sign_in(sqlite_gateway.services, refused, bad)
        assert "set-cookie" not in refused.headers


# The open service


def test_open_service_trusts_localhost_but_no_foreign_origin(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(open=True))
    image = gateway.ask("POST", "/v1/images", None, content=noise_png(), headers={"Content-Type": "image/png"})
    assert image.status_code == 201 and gateway.ask("GET", "/v1/keys", None).status_code == 200
    for foreign in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert told(
            gateway.ask(
                "POST", "/v1/images", None, content=noise_png(), headers={"Content-Type": "image/png"} | foreign
            )
        ) == (403, "csrf")
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80"):  # a name that was made to point here
        assert told(gateway.ask("GET", "/v1/images", None, headers={"Host": host})) == (400, "invalid_request")
    assert told(gateway.ask("GET", image.headers["location"], "stranger")) == (404, "not_found")
    assert told(gateway.ask("GET", "/v1/images", "revoked")) == (401, "unauthenticated")


def test_an_open_service_takes_requests_of_the_origins_that_its_preflight_lets_in(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(open=True, cors_origins=["https://viewer.example", "*"]))
    allowed = {"Origin": "https://viewer.example", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST"}
    assert gateway.ask("OPTIONS", "/v1/images", None, headers=allowed | asked).status_code == 200
    headers = {"Content-Type": "image/png"}
    image = gateway.ask("POST", "/v1/images", None, content=noise_png(), headers=headers | allowed)
    assert image.status_code == 201 and image.headers["access-control-allow-origin"]
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}  # a star names nobody
    refused = gateway.ask("POST", "/v1/images", None, content=noise_png(), headers=headers | foreign)
    assert told(refused) == (403, "csrf")


def test_an_open_service_on_a_public_address_does_not_start() -> None:
    with pytest.raises(ValidationError, match="serves without keys"):
        Settings(_env_file=None, open=True, host="0.0.0.0")


def test_signed_out_session_is_refused_everywhere(gateway: Gateway, serve: Callable[..., Gateway]) -> None:
    other = serve(gateway.settings.model_copy(update={"key_cache_s": 0.05}))
    with browser(gateway) as client, browser(gateway) as another:
        cookie = {"Cookie": f"{sessions.COOKIE}={client.cookies[sessions.COOKIE]}"}
        assert other.http.get("/v1/images", headers=cookie).status_code == 200
        token = sessions.csrf_token(gateway.services, client.cookies[sessions.COOKIE])
        assert client.post("/logout", data={"csrf_token": token}).status_code == 303
        time.sleep(0.1)
        for each in (gateway, other):
            answer = each.http.get("/v1/images", headers=cookie)
            assert told(answer) == (401, "unauthenticated") and "ended" in answer.json()["detail"]
        assert another.cookies[sessions.COOKIE] != client.cookies.get(sessions.COOKIE)


def test_ended_sessions_are_forgotten_once_their_cookies_have_expired(gateway: Gateway) -> None:
    from app.store import sessions as store

    with gateway.database.write() as session:
        store.end(session, gateway.project_id, "first", now() - timedelta(seconds=1))
        store.end(session, gateway.project_id, "second", now() + timedelta(hours=1))
        store.end(session, gateway.project_id, "second", now() + timedelta(hours=1))
    with gateway.database.read() as session:
        assert not store.has_ended(session, "first") and store.has_ended(session, "second")


def test_wrong_keys_are_throttled_by_address_and_a_right_one_is_never_locked_out(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrong_keys, "PAUSE_S", 0.01)
    gateway = serve(make_settings(wrong_keys_a_minute=20, key_cache_s=0.001))
    wrong = [f"ts_abcdefgh_{number:043d}" for number in range(500)]
    answers = [gateway.http.get("/v1/images", headers={"Authorization": f"Bearer {key}"}) for key in wrong]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:20] == [401] * 20 and set(statuses[20:]) == {429}
    assert told(answers[-1]) == (429, "too_many_wrong_keys") and 1 <= int(answers[-1].headers["retry-after"]) <= 61
    assert gateway.ask("GET", "/v1/images").status_code == 200
    refused = gateway.http.post("/login", data={"key": wrong[0]})
    assert refused.status_code == 429 and "retry-after" in refused.headers
    assert gateway.http.post("/login", data={"key": gateway.keys["viewer"]}).status_code == 303


def test_wrong_keys_of_many_addresses_take_bounded_memory_and_pass_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_keys, "PAUSE_S", 0)
    monkeypatch.setattr(wrong_keys, "MINUTE_S", 0.2)
    seen = wrong_keys.WrongKeys(1)

    async def send(address: str) -> type[Exception]:
        with pytest.raises(Problem) as refusal:
            async with seen.watched(address):
                raise Unauthenticated
        return type(refusal.value)

    async def story() -> None:
        assert [await send("a") for _ in range(3)] == [Unauthenticated, TooManyWrongKeys, TooManyWrongKeys]
        async with seen.watched("a"):
            pass  # a right key
        await asyncio.sleep(0.25)
        assert await send("a") is Unauthenticated
        for number in range(2 * wrong_keys.ADDRESSES):
            await send(str(number))
        assert len(seen) == wrong_keys.ADDRESSES

    asyncio.run(story())
    assert (
        wrong_keys.network_of(("2001:db8::1", 5)) == wrong_keys.network_of(("2001:db8::ffff:2", 6)) == "2001:db8::/64"
    )
    assert wrong_keys.network_of(("192.0.2.7", 5)) == "192.0.2.7"
