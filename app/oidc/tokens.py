"""Verification of a provider's tokens, and whom they are about."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, RSAKey
from joserfc.util import json_b64decode, urlsafe_b64decode

from app.errors import InvalidToken
from app.roles import Person

ALGORITHMS = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC"}
"""What a token may be signed with, and the type of key that it needs. Neither `none` nor one with a shared secret."""
TYPES = ("jwt", "at+jwt", "application/at+jwt")
"""What a token may say that it is (RFC 9068); a logout token or a proof of possession signs nobody in."""
LEAST_RSA_BITS = 2048
PUBLIC = ("kty", "kid", "alg", "use", "key_ops", "n", "e", "crv", "x", "y")
"""What is read of a published key."""
MOST_GROUPS = 2000
LAST_MOMENT = 250_000_000_000
"""In the year 9892; later ones are no dates in Python."""
SUBJECT = re.compile(r"[\x20-\x7e]{1,255}")
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")


class _Headers(jws.JWSRegistry):
    """Providers put certificates and fields of their own into the header."""

    max_header_length = 16 * 1024


_HEADERS = _Headers(algorithms=list(ALGORITHMS), strict_check_header=False)


class UnknownKey(Exception):
    """The token names a key that is not among those given, or names none and none of them has signed it."""


def public_keys(published: Any) -> list[Key]:
    """The keys of a JWK set that may sign tokens; others (for encryption, shared secrets, too short) are left out.

    ValueError when it is no JWK set.
    """
    if not isinstance(published, dict) or not isinstance(published.get("keys"), list):
        raise ValueError("no JWK set")
    return [key for each in published["keys"] if isinstance(each, dict) for key in _usable(each)]


def _usable(published: dict[str, Any]) -> list[Key]:
    kinds: dict[str, type[RSAKey | ECKey]] = {"RSA": RSAKey, "EC": ECKey}
    kind = kinds.get(str(published.get("kty")))
    if kind is None or published.get("use", "sig") != "sig":
        return []
    try:
        if kind is RSAKey and int.from_bytes(urlsafe_b64decode(published["n"].encode())).bit_length() < LEAST_RSA_BITS:
            return []
        return [kind.import_key({name: published[name] for name in PUBLIC if name in published})]
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return []  # a key of a kind that is not known here does not spoil the others


def verified(
    token: str, keys: Sequence[Key], *, issuer: str, audience: str, clients: Sequence[str], leeway_s: float
) -> dict[str, Any]:
    """The claims of a token that the provider has signed for us.

    issuer    what `iss` must be, exactly
    audience  what `aud` must be or hold
    clients   whom `azp`, where there is one, may name: the programs that tokens are issued to
    leeway_s  how far the clocks of provider and gateway may differ
    InvalidToken says what is wrong with it; UnknownKey that newer keys may help.
    """
    _check_issuer(_part(token, 1), issuer)  # before keys are looked for: another provider's are none of ours
    claims = _signed(token, keys)
    _check_issuer(claims, issuer)
    _check_times(claims, leeway_s)
    named = claims.get("aud")
    audiences = [named] if isinstance(named, str) else named
    if not isinstance(audiences, list) or audience not in audiences:
        _refuse("It was issued for another service: its audience (`aud`) is not ours. Ask for one with our audience.")
    if claims.get("azp") is None and len(audiences) > 1 and audience in clients:
        _refuse("It has several audiences and does not say whom it was issued to (`azp`).")
    if claims.get("azp") is not None and claims["azp"] not in clients:
        _refuse("It was issued to a program (`azp`) that is not among those accepted here.")
    if not isinstance(claims.get("sub"), str) or not SUBJECT.fullmatch(claims["sub"]):
        _refuse("It does not say whom it is about: `sub` must be 1 to 255 printable ASCII characters.")
    return claims


def person_of(claims: Mapping[str, Any], groups_claim: str) -> Person:
    """Whom verified claims are about.

    An address that the provider has not verified is left out: anybody could have typed it.
    groups_claim  a claim by its name, or the way to it through objects with dots: `realm_access.roles`
    """
    email = claims.get("email")
    proven = claims.get("email_verified") in (True, "true")
    good = isinstance(email, str) and proven and EMAIL.fullmatch(email) and email.isprintable()
    found: Any = claims.get(groups_claim)
    if found is None:
        found = claims
        for part in groups_claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    groups = tuple(
        dict.fromkeys(each for each in listed if isinstance(each, str) and 0 < len(each) <= 255 and each.isprintable())
    )
    return Person(claims["sub"], str(email).lower() if good else None, groups[:MOST_GROUPS])


def _signed(token: str, keys: Sequence[Key]) -> dict[str, Any]:
    """The claims of a token that one of the keys has signed."""
    header = _part(token, 0)
    algorithm, name = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        _refuse(f"It is not signed with one of {', '.join(ALGORITHMS)}.")
    if str(header.get("typ") or "jwt").lower() not in TYPES:
        _refuse("Its type (`typ`) is neither that of an ID token nor that of an access token.")
    fitting = [key for key in keys if key.key_type == ALGORITHMS[algorithm] and key.alg in (None, algorithm)]
    candidates = [key for key in fitting if name is None or key.get("kid") == name]
    for key in candidates:
        try:
            return jwt.decode(token, key, algorithms=[algorithm], registry=_HEADERS).claims
        except (JoseError, ValueError, TypeError, RecursionError):
            continue
    if name is not None and candidates:
        _refuse("Its signature is not right.")
    raise UnknownKey


def _part(token: str, position: int) -> dict[str, Any]:
    """Header (0) or claims (1) of a token as they are sent, whoever wrote them."""
    try:
        part = json_b64decode(token.split(".")[position].encode())
    except (ValueError, TypeError, RecursionError):
        part = None
    if not isinstance(part, dict):
        _refuse("It cannot be read: send the token as it was issued, three parts joined by dots.")
    return part


def _check_issuer(claims: Mapping[str, Any], issuer: str) -> None:
    if claims.get("iss") != issuer:
        _refuse("It was issued by another provider than the one that is configured here.")


def _check_times(claims: Mapping[str, Any], leeway_s: float) -> None:
    now = time.time()
    ends, begins = _moment(claims, "exp"), _moment(claims, "nbf")
    if ends is None:
        _refuse("It does not say when it ends (`exp`).")
    if now >= ends + leeway_s:
        _refuse("It has expired. Ask the provider for a new one.")
    if begins is not None and now < begins - leeway_s:
        _refuse("It is not valid yet (`nbf`). Look at the clocks of provider and gateway.")


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is not None and (
        not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < LAST_MOMENT
    ):
        _refuse(f"`{name}` must be a number of seconds since 1970.")
    return value


def _refuse(why: str) -> NoReturn:
    raise InvalidToken(f"This token is not accepted. {why}")
