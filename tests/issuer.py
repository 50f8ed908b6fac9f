"""A small OpenID provider over HTTP for tests: description, keys, sign-in, codes and what it knows of people."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jws, jwt
from joserfc.jwk import ECKey, Key, RSAKey

from tests.workers.answering import Answering

CLIENT, SECRET = "toposerve", "a secret: of the client"
PATH = "/realms/hospital"


class Issuer:
    """An OpenID provider on a free port.

    keys      what it signs with, by name; those of `published` are in its key set
    claims    what it says of whoever signs in next
    asked     paths of the requests it was sent
    asks      show a page before a browser is sent back
    away      answer 500 to everything
    changed   what its description says otherwise
    codes     code -> the query of the sign-in that it was given for
    token_claims  what the next ID token says otherwise
    told_later    what only the address for user information says
    forms     form and Authorization of every exchange of a code
    """

    def __init__(self, port: int, host: str):
        self.url = f"http://{host}:{port}{PATH}"
        self.keys: dict[str, Key] = {"rsa": RSAKey.generate_key(2048), "ec": ECKey.generate_key("P-256")}
        self.published = ["rsa", "ec"]
        self.claims: dict[str, Any] = {"sub": "ana-1", "email": "Ana@hospital.example", "email_verified": True}
        self.told_later: dict[str, Any] = {}
        self.asked: list[str] = []
        self.away = self.asks = False
        self.changed: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.token_claims: dict[str, Any] = {}
        self.forms: list[tuple[dict[str, str], str]] = []

    def description(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "jwks_uri": f"{self.url}/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        } | self.changed

    def key_set(self) -> dict[str, Any]:
        """Also with a key for encryption and one of a kind that nobody knows, as real sets have them."""
        listed = [self.keys[name].as_dict(private=False) | {"kid": name, "use": "sig"} for name in self.published]
        other = RSAKey.generate_key(2048).as_dict(private=False) | {"kid": "enc", "use": "enc"}
        return {"keys": [*listed, other, {"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AA"}]}

    def claims_of(self, **changes: Any) -> dict[str, Any]:
        """Claims as a token of today has them; a change to None leaves the claim out."""
        now = int(time.time())
        times = {"iss": self.url, "aud": CLIENT, "iat": now, "nbf": now, "exp": now + 300}
        return {name: value for name, value in (times | self.claims | changes).items() if value is not None}

    def token(
        self, key: str = "rsa", algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A signed token; `claims` are changes to `claims_of`."""
        head = {"alg": algorithm, "kid": key} | (header or {})
        head = {name: value for name, value in head.items() if value is not None}
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        return jwt.encode(head, self.claims_of(**claims), self.keys[key], algorithms=[algorithm], registry=registry)

    def count(self, name: str) -> int:
        """How often the address that ends so was asked."""
        return sum(path.endswith(name) for path in self.asked)


def by_hand(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes] = lambda text: b"") -> str:
    """A token that no library would write."""
    parts = [_packed(json.dumps(part).encode()) for part in (header, claims)]
    text = ".".join(parts).encode()
    return f"{text.decode()}.{_packed(sign(text))}"


def shared(secret: bytes) -> Callable[[bytes], bytes]:
    """The signature of HS256."""
    return lambda text: hmac.digest(secret, text, hashlib.sha256)


def private(key: Key) -> Callable[[bytes], bytes]:
    """The signature of RS256."""
    return lambda text: key.get_op_key("sign").sign(text, PKCS1v15(), SHA256())


def _packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Handler(Answering, BaseHTTPRequestHandler):
    issuer: Issuer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        issuer, name = self.issuer, address.path.removeprefix(PATH)
        issuer.asked.append(address.path)
        if issuer.away:
            self.tell(500, b"away", "text/plain")
        elif name == "/.well-known/openid-configuration":
            self._json(issuer.description())
        elif name == "/keys":
            self._json(issuer.key_set())
        elif name == "/userinfo":
            self._json({"sub": issuer.claims["sub"]} | issuer.told_later)
        elif name == "/authorize" and issuer.asks:
            page = f'<title>Hospital</title><a href="{html.escape(self.path)}&amp;agreed=1">Agree</a>'
            self.tell(200, page.encode(), "text/html") if "agreed=1" not in self.path else self._send_back(
                address.query
            )
        elif name == "/authorize":
            self._send_back(address.query)
        else:
            self.tell(404, b"", "text/plain")

    def _send_back(self, sent: str) -> None:
        """Send the browser back with a code."""
        query = {each: values[0] for each, values in parse_qs(sent).items()}
        code = secrets.token_urlsafe(8)
        self.issuer.codes[code] = query
        told = urlencode({"code": code, "state": query["state"], "iss": self.issuer.url})
        self.tell(302, b"", "text/plain", Location=f"{query['redirect_uri']}?{told}")

    def do_POST(self) -> None:
        issuer = self.issuer
        issuer.asked.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        form = {name: values[0] for name, values in parse_qs(content.decode()).items()}
        issuer.forms.append((form, self.headers.get("Authorization", "")))
        asked = issuer.codes.pop(form.get("code", ""), None)  # a code is good once
        kind, _, packed = self.headers.get("Authorization", "").partition(" ")
        given = base64.b64decode(packed).decode() if kind == "Basic" else ""
        known = (
            [unquote(part) for part in given.split(":")] == [CLIENT, SECRET]
            if given
            else form.get("client_id") == CLIENT
        )
        challenge = _packed(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if issuer.away:
            self.tell(500, b"away", "text/plain")
        elif (
            not known
            or asked is None
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != form["redirect_uri"]
        ):
            self._json({"error": "invalid_grant"}, 400)
        else:
            claims = {"nonce": asked["nonce"]} | issuer.token_claims
            self._json({"id_token": issuer.token(**claims), "access_token": "opaque", "token_type": "Bearer"})

    def _json(self, told: dict[str, Any], status: int = 200) -> None:
        self.tell(status, json.dumps(told).encode(), "application/json")


@contextmanager
def issuing(host: str = "127.0.0.1") -> Iterator[Issuer]:
    """A provider that answers until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(server.server_address[1], host)
    server.RequestHandlerClass = type("Own", (Handler,), {"issuer": issuer})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
