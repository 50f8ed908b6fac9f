"""Bearer tokens of an OpenID provider, and members of projects."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey, RSAKey
from sqlalchemy import select

from app.oidc import provider
from app.oidc.tokens import person_of, public_keys, verified
from app.roles import ROLES
from app.settings import Settings
from app.store import members
from app.store.tables import AuditLine
from tests.gateway import UNKNOWN, Gateway, told
from tests.issuer import CLIENT, Issuer, by_hand, issuing, private, shared
from tests.services import wait_for
from toposerve_client import Client
from toposerve_client.errors import Refused


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as running:
        yield running


@pytest.fixture(scope="module")
def with_people(module_settings: Settings, issuer: Issuer, serve: Callable[..., Gateway]) -> Gateway:
    known = {"oidc_issuer": issuer.url, "oidc_client_id": CLIENT, "wrong_keys_a_minute": 100_000}
    return serve(module_settings.model_copy(update=known))


@pytest.fixture
def gateway(with_people: Gateway, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """A new project in a gateway that knows the provider, which may be asked for its keys at any time."""
    monkeypatch.setattr(provider, "REFETCH_S", 0)
    return with_people.new_project()


@pytest.fixture
def alone(issuer: Issuer, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> Gateway:
    """A gateway that has never asked the provider for anything."""
    issuer.away = False
    return serve(make_settings(oidc_issuer=issuer.url, oidc_client_id=CLIENT))


def ask(gateway: Gateway, token: str, path: str = "/v1/images", method: str = "GET", **headers: str) -> httpx.Response:
    """A request with a token of the provider."""
    return gateway.http.request(method, path, headers={"Authorization": f"Bearer {token}", **headers})


def let_in(gateway: Gateway, value: str, role: str = "viewer", kind: str = "subject", who: str = "admin") -> str:
    """Make somebody a member; the id."""
    made = gateway.ask("POST", "/v1/members", who, json={"kind": kind, "value": value, "role": role})
    assert made.status_code == 201, made.text
    return made.json()["id"]


def name_of(gateway: Gateway, who: str = "admin") -> str:
    return gateway.ask("GET", "/v1/projects", who).json()["items"][0]["name"]


@pytest.mark.parametrize(("key", "algorithm"), [("rsa", "RS256"), ("rsa", "PS256"), ("ec", "ES256")])
def test_a_member_is_let_in_by_a_token_signed_with_each_algorithm(
    gateway: Gateway, issuer: Issuer, key: str, algorithm: str
) -> None:
    subject = f"{algorithm}-{gateway.project_id}"
    let_in(gateway, subject)
    for header in ({}, {"typ": "at+jwt", "x5c": ["M" * 2000], "own": 1}, {"kid": None}):
        answer = ask(gateway, issuer.token(key, algorithm, header, sub=subject))
        assert answer.status_code == 200, answer.text
    assert name_of(gateway) in ask(gateway, issuer.token(key, algorithm, sub=subject), "/v1/projects").text


def refused(issuer: Issuer) -> dict[str, tuple[Callable[[], str], str]]:
    """Tokens that must not be accepted, and a part of the reason that is given."""
    now, public = int(time.time()), issuer.keys["rsa"].as_pem(private=False)
    claims, known = issuer.claims_of, {"alg": "RS256", "kid": "rsa"}
    assert verifies(by_hand(known, claims(), private(issuer.keys["rsa"])), issuer), "what is signed by hand is good"
    return {
        "expired": (lambda: issuer.token(exp=now - 31), "has expired"),
        "without an end": (lambda: issuer.token(exp=None), "`exp`"),
        "an end that is no number": (lambda: issuer.token(exp="tomorrow"), "`exp`"),
        "an end that is no date": (lambda: issuer.token(exp=10**18), "`exp`"),
        "not valid yet": (lambda: issuer.token(nbf=now + 40), "not valid yet"),
        "another audience": (lambda: issuer.token(aud="payroll"), "audience"),
        "no audience": (lambda: issuer.token(aud=None), "audience"),
        "no audience among several": (lambda: issuer.token(aud=["payroll", "mail"]), "audience"),
        "an audience that holds ours": (lambda: issuer.token(aud="xtoposervex"), "audience"),
        "several audiences and no client": (lambda: issuer.token(aud=[CLIENT, "mail"]), "`azp`"),
        "another client": (lambda: issuer.token(azp="payroll"), "`azp`"),
        "another issuer": (lambda: issuer.token(iss="https://other.example"), "another provider"),
        "the issuer with a slash": (lambda: issuer.token(iss=issuer.url + "/"), "another provider"),
        "no issuer": (lambda: issuer.token(iss=None), "another provider"),
        "no subject": (lambda: issuer.token(sub=None), "`sub`"),
        "a subject that is a list": (lambda: issuer.token(sub=["ana-1"]), "`sub`"),
        "a logout token": (lambda: issuer.token(header={"typ": "logout+jwt"}), "type"),
        "algorithm none": (lambda: by_hand({"alg": "none"}, claims()), "not signed with one of"),
        "algorithm None": (lambda: by_hand({"alg": "None", "kid": "rsa"}, claims()), "not signed with one of"),
        "no algorithm": (lambda: by_hand({"kid": "rsa"}, claims()), "not signed with one of"),
        "a public key as shared secret": (
            lambda: by_hand({"alg": "HS256", "kid": "rsa"}, claims(), shared(public)),
            "not signed with one of",
        ),
        "a public key as shared secret of RS256": (
            lambda: by_hand({"alg": "RS256", "kid": "rsa"}, claims(), shared(public)),
            "signature",
        ),
        "RS512": (lambda: issuer.token(algorithm="RS512"), "not signed with one of"),
        "the key of another algorithm": (
            lambda: issuer.token("ec", "ES256", {"kid": "rsa"}),
            "a key that the provider does not publish",
        ),
        "another key under a known name": (lambda: impostor(issuer), "signature"),
        "no signature": (lambda: issuer.token().rpartition(".")[0] + ".", "signature"),
        "changed claims": (lambda: changed(issuer), "signature"),
        "an unknown critical header": (
            lambda: by_hand(known | {"crit": ["own"], "own": 1}, claims(), private(issuer.keys["rsa"])),
            "signature",
        ),
        "no base64": (lambda: "a.b!.c", "cannot be read"),
        "no object": (lambda: "MQ.MQ.MQ", "cannot be read"),
        "empty parts": (lambda: "..", "cannot be read"),
    }


def verifies(token: str, issuer: Issuer) -> bool:
    keys = public_keys(issuer.key_set())
    return bool(verified(token, keys, issuer=issuer.url, audience=CLIENT, clients=[CLIENT], leeway_s=0))


def impostor(issuer: Issuer) -> str:
    issuer.keys["impostor"] = RSAKey.generate_key(2048)
    return issuer.token("impostor", header={"kid": "rsa"})


def changed(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return ".".join((head, issuer.token(sub="root").split(".")[1], signature))


def test_each_wrong_token_is_refused_with_its_reason(gateway: Gateway, issuer: Issuer) -> None:
    let_in(gateway, "ana-1", "admin", who="admin")
    assert ask(gateway, issuer.token()).status_code == 200
    wrong = []
    for name, (token, reason) in refused(issuer).items():
        answer = ask(gateway, token())
        said = answer.json()["detail"]
        challenge = answer.headers.get("www-authenticate", "")
        expected = 'Bearer realm="toposerve", error="invalid_token", error_description="'
        if told(answer) != (401, "invalid_token") or reason not in said or not challenge.startswith(expected):
            wrong.append(f"{name}: {answer.status_code} {said} {challenge}")
    assert not wrong, "\n".join(wrong)


def test_clocks_may_differ_by_the_leeway_and_not_more(gateway: Gateway, issuer: Issuer) -> None:
    now, subject = int(time.time()), f"clock-{gateway.project_id}"
    let_in(gateway, subject)
    for times, status in (({"exp": now - 20}, 200), ({"nbf": now + 20}, 200), ({"exp": now - 31}, 401)):
        assert ask(gateway, issuer.token(sub=subject, **times)).status_code == status, times


def test_an_accepted_token_is_refused_once_it_has_expired(
    issuer: Issuer, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    known = {"oidc_issuer": issuer.url, "oidc_client_id": CLIENT, "oidc_leeway_s": 0}
    gateway = serve(make_settings(key_cache_s=60, **known))
    let_in(gateway, "ana-1")
    token = issuer.token(exp=time.time() + 0.7)
    assert ask(gateway, token).status_code == 200
    wait_for(lambda: ask(gateway, token).status_code == 401, seconds=3, what="the token to expire")


def test_audience_and_other_clients_are_those_of_the_settings(
    issuer: Issuer, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    known = {"oidc_issuer": issuer.url, "oidc_client_id": CLIENT}
    gateway = serve(make_settings(oidc_audience="api://masks", oidc_other_clients=["shell"], **known))
    let_in(gateway, "ana-1")
    ours = {"aud": ["api://masks", "mail"]}
    for claims, status in (({}, 401), (ours, 200), (ours | {"azp": "shell"}, 200), (ours | {"azp": "mail"}, 401)):
        assert ask(gateway, issuer.token(**claims)).status_code == status, claims


# Keys of the provider


def test_keys_are_asked_for_once_and_again_when_they_were_changed(alone: Gateway, issuer: Issuer) -> None:
    let_in(alone, "ana-1")
    before = issuer.count("/keys")
    for number in range(5):
        assert ask(alone, issuer.token(number=number)).status_code == 200
    assert issuer.count("/keys") == before + 1
    issuer.keys["next"] = ECKey.generate_key("P-256")
    try:
        token = issuer.token("next", "ES256")
        assert told(ask(alone, token)) == (401, "invalid_token") and issuer.count("/keys") == before + 1, "too soon"
        alone.services.provider._tried_at -= provider.REFETCH_S
        assert told(ask(alone, token)) == (401, "invalid_token") and issuer.count("/keys") == before + 2
        issuer.published = ["next"]
        for _ in range(3):
            assert told(ask(alone, token)) == (401, "invalid_token")
        assert issuer.count("/keys") == before + 2, "asked again within the time between two requests"
        alone.services.provider._tried_at -= provider.REFETCH_S
        assert ask(alone, token).status_code == 200 and issuer.count("/keys") == before + 3
        assert told(ask(alone, issuer.token(number=9))) == (401, "invalid_token"), "the old key is no longer published"
    finally:
        issuer.published = ["rsa", "ec"]


def test_callers_who_come_together_ask_for_the_keys_once(alone: Gateway, issuer: Issuer) -> None:
    let_in(alone, "ana-1")
    before = issuer.count("/keys")
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(lambda number: ask(alone, issuer.token(number=number)).status_code, range(16)))
    assert answers == [200] * 16 and issuer.count("/keys") == before + 1


def test_without_the_provider_tokens_get_503_and_keys_work(alone: Gateway, issuer: Issuer) -> None:
    let_in(alone, "ana-1")
    issuer.away = True
    try:
        answer = ask(alone, issuer.token())
        assert told(answer) == (503, "unavailable") and issuer.url in answer.json()["detail"]
        assert 1 <= int(answer.headers["retry-after"]) <= provider.REFETCH_S + 1
        asked = len(issuer.asked)
        assert told(ask(alone, issuer.token())) == (503, "unavailable") and len(issuer.asked) == asked
        assert alone.ask("GET", "/v1/images").status_code == 200
        issuer.away = False
        alone.services.provider._tried_at -= provider.REFETCH_S
        assert ask(alone, issuer.token()).status_code == 200
        issuer.away = True
        alone.services.provider._tried_at -= provider.REFETCH_S
        assert ask(alone, issuer.token(number=2)).status_code == 200, "the keys are known"
        issuer.keys["later"] = ECKey.generate_key("P-256")
        assert told(ask(alone, issuer.token("later", "ES256"))) == (503, "unavailable")
        alone.services.provider._fetched_at -= provider.FRESH_S
        alone.services.provider._tried_at -= provider.REFETCH_S
        assert ask(alone, issuer.token(number=3)).status_code == 200, "old keys are used while there are no new ones"
        alone.services.provider._fetched_at -= provider.STALE_S
        assert told(ask(alone, issuer.token(number=4))) == (503, "unavailable")
    finally:
        issuer.away = False


@pytest.mark.parametrize(
    "description",
    [
        {"issuer": "https://other.example"},
        {"jwks_uri": "http://keys.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"padding": "x" * provider.MOST_BYTES},
    ],
    ids=["another issuer", "no TLS", "a file", "no address", "too long"],
)
def test_a_description_that_cannot_be_trusted_is_not_used(
    alone: Gateway, issuer: Issuer, description: dict[str, Any]
) -> None:
    issuer.changed = description
    try:
        assert told(ask(alone, issuer.token())) == (503, "unavailable")
    finally:
        issuer.changed = {}


def test_weak_and_foreign_keys_of_the_set_are_left_out() -> None:
    good = RSAKey.generate_key(2048).as_dict(private=False) | {"kid": "good"}
    careless = ECKey.generate_key("P-256").as_dict(private=True) | {"kid": "private"}
    small = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n
    n = base64.urlsafe_b64encode(small.to_bytes(128)).rstrip(b"=").decode()
    short = {"kty": "RSA", "kid": "short", "e": "AQAB", "n": n}
    symmetric = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}
    broken = [{"kty": "RSA", "kid": "broken"}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": ["RSA"]}, 1]
    found = public_keys({"keys": [good, careless, short, symmetric, *broken, good | {"use": "enc"}]})
    assert [key.kid for key in found] == ["good", "private"] and not any(key.is_private for key in found)
    for wrong in ([], {"keys": {}}, {}):
        with pytest.raises(ValueError, match="no JWK set"):
            public_keys(wrong)


def test_a_gateway_without_a_provider_takes_no_token(shared_gateway: Gateway, issuer: Issuer) -> None:
    answer = ask(shared_gateway, issuer.token())
    assert told(answer) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == 'Bearer realm="toposerve"'


def test_settings_name_a_provider_completely_and_safely(make_settings: Callable[..., Settings]) -> None:
    client = {"oidc_client_id": CLIENT}
    assert make_settings(oidc_issuer="https://login.example/tenant", **client)
    for address in (
        "http://login.example",
        "login.example",
        "https://login.example/?a=b",
        "https://",
        "ftp://localhost",
    ):
        with pytest.raises(ValueError, match="oidc_issuer must be an https address"):
            make_settings(oidc_issuer=address, **client)
    with pytest.raises(ValueError, match="without oidc_client_id"):
        make_settings(oidc_issuer="https://login.example")
    with pytest.raises(ValueError, match="must hold `openid`"):
        make_settings(oidc_issuer="https://login.example", oidc_scopes=["email"], **client)


# Members


def test_a_member_may_do_exactly_what_a_key_of_that_role_may(gateway: Gateway, issuer: Issuer) -> None:
    """The table of tests/api/test_access.py holds for keys; here each route of it is asked by a member as well."""
    from tests.api.test_access import ACCESS, MAY, PUBLIC, address

    subjects = {role: f"{role}-{gateway.project_id}" for role in MAY}
    for role in set(MAY) - {"operator"}:
        let_in(gateway, subjects[role], role)
    with gateway.database.write() as session:
        members.add(session, project_id=gateway.project_id, kind="subject", value=subjects["operator"], role="operator")
    tokens = {role: issuer.token(sub=subject) for role, subject in subjects.items()}
    wrong = []
    for route, needed in ACCESS.items():
        method, path = route.split(" ")
        for role in MAY:
            if needed == PUBLIC or (method, path) in {("GET", "/metrics"), ("GET", "/openapi.json")}:
                continue
            json = {} if method in ("POST", "PUT", "PATCH") else None
            key = gateway.ask(method, address(path), role, json=json)
            member = gateway.http.request(
                method, address(path), headers={"Authorization": f"Bearer {tokens[role]}"}, json=json
            )
            if (key.status_code == 403) != (member.status_code == 403) or key.status_code != member.status_code:
                wrong.append(f"{route} as {role}: key {key.status_code}, member {member.status_code}")
    assert not wrong, "\n".join(wrong)
    refusal = ask(gateway, tokens["viewer"], "/v1/keys").json()["detail"]
    assert "which your role viewer does not have" in refusal


def test_who_is_no_member_gets_403_and_is_told_who_they_are(gateway: Gateway, issuer: Issuer) -> None:
    answer = ask(gateway, issuer.token(sub="nobody-7", email="nobody@hospital.example"))
    assert told(answer) == (403, "forbidden")
    assert "nobody-7 (nobody@hospital.example)" in answer.json()["detail"]


def test_members_are_found_by_subject_verified_address_and_group(gateway: Gateway, issuer: Issuer) -> None:
    mark = gateway.project_id.hex[-8:]
    let_in(gateway, f"Ana.{mark}@Hospital.example", "clinician", "email")
    let_in(gateway, f"ward {mark}", "viewer", "group")
    email, group = f"aNA.{mark}@hospital.EXAMPLE", [f"ward {mark}", "x" * 300, "a\0b", 5]
    for claims, status in (
        ({"email": email}, 200),
        ({"email": email, "email_verified": False}, 403),
        ({"email": email, "email_verified": None}, 403),
        ({"email": [email]}, 403),
        ({"groups": group}, 200),
        ({"groups": group[0]}, 200),
        ({"groups": [group]}, 403),
        ({"roles": group}, 403),
        ({"groups": [email.lower()]}, 403),
        ({"sub": group[0]}, 403),
        ({"sub": email.lower()}, 403),
    ):
        assert ask(gateway, issuer.token(**{"sub": f"new-{mark}"} | claims)).status_code == status, claims


def test_the_claim_of_groups_is_named_by_the_settings() -> None:
    claims = {"sub": "a", "realm_access": {"roles": ["x", "y", "x"]}, "https://a.b/groups": ["z"], "deep": {"a": []}}
    for name, groups in (
        ("realm_access.roles", ("x", "y")),
        ("https://a.b/groups", ("z",)),
        ("deep.a.b", ()),
        ("none", ()),
        ("sub.a", ()),
    ):
        assert person_of(claims, name).groups == groups, name


def test_roles_of_one_person_in_a_project_add_up(gateway: Gateway, issuer: Issuer) -> None:
    subject = f"both-{gateway.project_id}"
    let_in(gateway, subject, "viewer")
    token = issuer.token(sub=subject, groups=[subject])
    body = {"content": b"not an image", "headers": {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}}
    assert gateway.http.post("/v1/images", **body).status_code == 403
    let_in(gateway, subject, "engineer", "group")
    assert gateway.http.post("/v1/images", **body).status_code == 415
    assert "role engineer does not" in ask(gateway, token, "/v1/keys").json()["detail"]


def test_a_member_of_several_projects_names_one_in_the_header(gateway: Gateway, issuer: Issuer) -> None:
    subject = f"two-{gateway.project_id}"
    let_in(gateway, subject, "viewer")
    let_in(gateway, subject, "engineer", who="stranger")
    names = {who: name_of(gateway, who) for who in ("admin", "stranger")}
    token = issuer.token(sub=subject)
    answer = ask(gateway, token)
    assert told(answer) == (400, "project_not_chosen") and answer.json()["projects"] == sorted(names.values())
    for who, role in (("admin", "viewer"), ("stranger", "engineer")):
        chosen = {"X-Project": names[who]}
        listed = ask(gateway, token, "/v1/projects", **chosen).json()["items"]
        assert [each["name"] for each in listed] == [names[who]]
        assert ask(gateway, token, **{"X-Project": listed[0]["id"]}).status_code == 200
        assert f"role {role} does" in ask(gateway, token, "/v1/keys", **chosen).json()["detail"]
    with Client(gateway.url, token, project=names["stranger"]) as client:
        assert client.request("GET", "/v1/projects").json()["items"][0]["name"] == names["stranger"]
    with Client(gateway.url, token) as client, pytest.raises(Refused, match="several projects"):
        client.request("GET", "/v1/projects")
    for unknown in ("nothing", UNKNOWN, ""):
        answer = ask(gateway, token, **{"X-Project": unknown})
        assert told(answer) == (403, "forbidden") and names["admin"] in answer.json()["detail"]


def test_a_key_is_not_used_for_another_project_than_the_header_names(gateway: Gateway) -> None:
    mine, other = name_of(gateway), name_of(gateway, "stranger")
    for named in (mine, str(gateway.project_id)):
        assert gateway.ask("GET", "/v1/images", headers={"X-Project": named}).status_code == 200
    assert told(gateway.ask("GET", "/v1/images", headers={"X-Project": other})) == (403, "forbidden")


def test_members_are_added_changed_and_removed_and_the_audit_says_so(gateway: Gateway, issuer: Issuer) -> None:
    subject = f"life-{gateway.project_id}"
    token = issuer.token(sub=subject)
    member = let_in(gateway, subject, "viewer")
    address = f"/v1/members/{member}"
    shown = gateway.ask("GET", address, "admin").json()
    assert (shown["kind"], shown["value"], shown["role"]) == ("subject", subject, "viewer")
    assert gateway.ask("GET", "/v1/members", "admin").json()["items"] == [shown]
    assert ask(gateway, token, "/v1/keys").status_code == 403
    assert gateway.ask("PATCH", address, "admin", json={"role": "admin"}).json() == shown | {"role": "admin"}
    assert ask(gateway, token, "/v1/keys").status_code == 200
    made = gateway.http.post(
        "/v1/keys", headers={"Authorization": f"Bearer {token}"}, json={"name": "x", "role": "viewer"}
    )
    assert made.status_code == 201
    assert gateway.ask("DELETE", address, "admin").status_code == 204
    assert told(ask(gateway, token)) == (403, "forbidden")
    assert told(gateway.ask("DELETE", address, "admin")) == (404, "not_found")
    with gateway.database.read() as session:
        query = select(AuditLine).where(AuditLine.project_id == gateway.project_id).order_by(AuditLine.id)
        lines = [(line.who, line.what, line.object) for line in session.scalars(query)]
    admin, told_of = f"ts_{gateway.keys['admin'][3:11]}", f"{member} {{}} subject {subject}"
    assert lines == [
        (admin, "member.create", told_of.format("viewer")),
        (admin, "member.change", told_of.format("admin")),
        ("ana@hospital.example", "key.create", made.json()["id"]),
        (admin, "member.remove", told_of.format("admin")),
    ]


def test_nobody_gives_a_role_that_may_do_more_than_their_own(gateway: Gateway) -> None:
    new = {"kind": "group", "value": "staff", "role": "operator"}
    assert told(gateway.ask("POST", "/v1/members", "admin", json=new)) == (403, "forbidden")
    limited = {"name": "desk", "role": "admin", "scopes": ["keys:admin", *sorted(ROLES["viewer"])]}
    gateway.keys["desk"] = gateway.ask("POST", "/v1/keys", "admin", json=limited).json()["key"]
    member = let_in(gateway, "staff", "viewer", "group", "desk")
    assert told(gateway.ask("PATCH", f"/v1/members/{member}", "desk", json={"role": "clinician"})) == (403, "forbidden")
    assert told(gateway.ask("POST", "/v1/members", "desk", json=new | {"role": "admin"})) == (403, "forbidden")


def test_members_of_another_project_get_404(gateway: Gateway) -> None:
    theirs = let_in(gateway, "staff", "viewer", "group", "stranger")
    for method, body in (("GET", None), ("PATCH", {"role": "viewer"}), ("DELETE", None)):
        for member in (theirs, UNKNOWN):
            answer = gateway.ask(method, f"/v1/members/{member}", "admin", json=body)
            assert told(answer) == (404, "not_found")
    assert theirs not in gateway.ask("GET", "/v1/members", "admin").text


def test_wrong_members_are_refused_with_the_field_and_doubles_with_the_role(gateway: Gateway) -> None:
    for body, pointer in (
        ({"kind": "email", "value": "ana", "role": "viewer"}, "/value"),
        ({"kind": "subject", "value": "ä", "role": "viewer"}, "/value"),
        ({"kind": "group", "value": "", "role": "viewer"}, "/value"),
        ({"kind": "person", "value": "ana", "role": "viewer"}, "/kind"),
        ({"kind": "group", "value": "ana", "role": "boss"}, "/role"),
        ({"kind": "group", "value": "ana"}, "/role"),
    ):
        answer = gateway.ask("POST", "/v1/members", "admin", json=body)
        assert told(answer) == (422, "invalid") and pointer in answer.text, (body, answer.text)
    let_in(gateway, "Ana@hospital.example", "clinician", "email")
    again = {"kind": "email", "value": "ana@HOSPITAL.example", "role": "viewer"}
    answer = gateway.ask("POST", "/v1/members", "admin", json=again)
    assert told(answer) == (409, "conflict") and "as clinician" in answer.json()["detail"]
