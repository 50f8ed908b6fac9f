"""An OpenID provider: its description, its keys, and whom tokens and codes are about."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import structlog
from joserfc.jwk import Key

from app.errors import InvalidToken, Unavailable
from app.oidc.tokens import UnknownKey, person_of, public_keys, verified
from app.roles import Person
from app.settings import Settings, is_loopback

log = structlog.get_logger()

FRESH_S = 3600
"""How old description and keys may be before they are asked for again."""
STALE_S = 24 * 3600
"""How long they are used when the provider does not answer."""
REFETCH_S = 10
"""Time between two requests for them, whatever tokens say about unknown keys and however the last one ended."""
MOST_BYTES = 1024 * 1024
FAILURES = (httpx.HTTPError, httpx.InvalidURL, ValueError)
"""What a request to the provider may raise."""


class Refused(ValueError):
    """The provider answered that the request is wrong."""


class Provider:
    """The provider that the settings name; used on the event loop only."""

    def __init__(self, settings: Settings):
        assert settings.oidc_issuer is not None and settings.oidc_client_id is not None
        self.issuer, self.client_id = settings.oidc_issuer, settings.oidc_client_id
        self._settings = settings
        self._http = httpx.AsyncClient(timeout=settings.oidc_timeout_s, follow_redirects=False)
        self._turn = asyncio.Lock()
        self._described: dict[str, Any] = {}
        self._keys: list[Key] = []
        self._fetched_at = self._tried_at = -float("inf")
        self._answered = False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def bearer(self, token: str) -> tuple[Person, float]:
        """Whom a bearer token is about, and when it ends in seconds since 1970.

        InvalidToken when it is not accepted, Unavailable when the provider's keys cannot be had.
        """
        audience = self._settings.oidc_audience or self.client_id
        claims = await self._verified(token, audience, [self.client_id, *self._settings.oidc_other_clients])
        return person_of(claims, self._settings.oidc_groups_claim), float(claims["exp"])

    async def address(self, redirect_uri: str, state: str, nonce: str, challenge: str) -> str:
        """Where a browser goes to sign in; Unavailable when the provider does not say."""
        await self._keep_fresh()
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.oidc_scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        address = self._known("authorization_endpoint")
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    async def exchange(self, code: str, redirect_uri: str, verifier: str, nonce: str) -> Person:
        """Whom a code is about that a browser has brought back.

        InvalidToken when the code or the ID token is not accepted, Unavailable when the provider does not answer.
        """
        await self._keep_fresh()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form["code_verifier"] = verifier
        headers, secret = {}, self._settings.oidc_client_secret
        ways = self._described.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if secret is not None and "client_secret_basic" in ways:
            both = f"{quote(self.client_id, safe='')}:{quote(secret.get_secret_value(), safe='')}"  # RFC 6749, 2.3.1
            headers["Authorization"] = f"Basic {base64.b64encode(both.encode()).decode()}"
        else:
            form["client_id"] = self.client_id
            if secret is not None:
                form["client_secret"] = secret.get_secret_value()
        try:
            told = await self._json("POST", self._known("token_endpoint"), data=form, headers=headers)
        except Refused as error:
            log.warning("code_refused", issuer=self.issuer, reason=str(error))
            raise InvalidToken(
                "The provider did not accept the code that it gave for this sign-in. Sign in again; when that happens"
                " each time, let an administrator look at the client's secret and address."
            ) from None
        except FAILURES as error:
            raise self._away() from error
        token = told.get("id_token")
        if not isinstance(token, str):
            raise InvalidToken("The provider sent no ID token. Let an administrator look at TOPOSERVE_OIDC_SCOPES.")
        claims = await self._verified(token, self.client_id, [self.client_id])
        if not hmac.compare_digest(str(claims.get("nonce")).encode("utf-8", "surrogatepass"), nonce.encode()):
            raise InvalidToken("The ID token was made for another sign-in (`nonce`). Sign in again.")
        return person_of(await self._completed(claims, told), self._settings.oidc_groups_claim)

    async def _completed(self, claims: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """The claims, with what the provider tells of a person only when it is asked: often address and groups."""
        known = person_of(claims, self._settings.oidc_groups_claim)
        token = told.get("access_token")
        if (known.email and known.groups) or not isinstance(token, str) or "userinfo_endpoint" not in self._described:
            return claims
        try:
            more = await self._json(
                "GET", self._known("userinfo_endpoint"), headers={"Authorization": f"Bearer {token}"}
            )
            if more.get("sub") != claims["sub"]:
                raise ValueError("it told of somebody else")
        except (*FAILURES, Unavailable) as error:
            log.warning("person_not_read", issuer=self.issuer, reason=f"{type(error).__name__}: {error}"[:300])
            return claims
        return more | claims

    async def _verified(self, token: str, audience: str, clients: list[str]) -> dict[str, Any]:
        await self._keep_fresh()
        for newest in (False, True):
            try:
                return verified(
                    token,
                    self._keys,
                    issuer=self.issuer,
                    audience=audience,
                    clients=clients,
                    leeway_s=self._settings.oidc_leeway_s,
                )
            except UnknownKey:
                if newest or not await self._fetched_again():
                    break
        raise InvalidToken(
            "This token is not accepted. It is signed with a key that the provider does not publish. Ask the provider"
            " for a new one."
        )

    async def _keep_fresh(self) -> None:
        """Have description and keys. Old ones are used while others are asked for, and when none come."""
        age_s = time.monotonic() - self._fetched_at
        if age_s < FRESH_S or (age_s < STALE_S and (self._turn.locked() or not self._may_try)):
            return
        seen = self._tried_at
        async with self._turn:
            if self._tried_at != seen and time.monotonic() - self._fetched_at < FRESH_S:
                return  # somebody else has asked meanwhile
            if self._may_try:
                await self._fetch()
        if time.monotonic() - self._fetched_at > STALE_S:
            raise self._away()

    async def _fetched_again(self) -> bool:
        """Ask for the keys once more, unless that was done a moment ago; True when there may be new ones."""
        seen = self._fetched_at
        async with self._turn:
            if self._fetched_at == seen and self._may_try:
                await self._fetch()
        if not self._answered:
            raise self._away()
        return self._fetched_at != seen

    @property
    def _may_try(self) -> bool:
        return time.monotonic() - self._tried_at >= REFETCH_S

    async def _fetch(self) -> None:
        """Read description and keys; a line in the log tells when that fails."""
        self._tried_at, self._answered = time.monotonic(), False
        try:
            described = await self._json("GET", self.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if described.get("issuer") != self.issuer:
                raise ValueError("its `issuer` is not the one that is configured")
            keys = public_keys(await self._json("GET", self._endpoint(described, "jwks_uri")))
            if not keys:
                raise ValueError("it publishes no key that can sign")
        except FAILURES as error:
            log.warning("provider_not_read", issuer=self.issuer, reason=f"{type(error).__name__}: {error}"[:300])
            return
        self._described, self._keys, self._fetched_at = described, keys, time.monotonic()
        self._answered = True

    async def _json(self, method: str, address: str, **options: Any) -> dict[str, Any]:
        """The object that an address answers; one of FAILURES when it answers none."""
        async with self._http.stream(method, address, **options) as response:
            content = b""
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise ValueError("its answer is too long")
            if 400 <= response.status_code < 500:
                raise Refused(f"it answered {response.status_code}")
            if response.status_code != 200:
                raise ValueError(f"it answered {response.status_code}")
        answer = json.loads(content)
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer

    @staticmethod
    def _endpoint(described: dict[str, Any], name: str) -> str:
        """An address of the description; ValueError when it has none that may be asked."""
        address = described.get(name)
        parts = urlsplit(address if isinstance(address, str) else "")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError(f"its `{name}` is no https address")
        return str(address)

    def _known(self, name: str) -> str:
        """An address of the description, or Unavailable."""
        try:
            return self._endpoint(self._described, name)
        except ValueError:
            raise Unavailable(f"The OpenID provider {self.issuer} does not say its `{name}`.") from None

    def _away(self) -> Unavailable:
        wait_s = max(1, int(self._tried_at + REFETCH_S - time.monotonic() + 1))
        return Unavailable(
            f"The OpenID provider {self.issuer} does not answer as it should, so nobody can be recognised by it; API"
            f" keys work as ever. Try again in {wait_s} s.",
            retry_after_s=wait_s,
        )
