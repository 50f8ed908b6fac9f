"""Ends this process at the n-th commit, rename or message, as a crash would: FAILPOINT=before_commit:3.

Python imports this module at its start where its folder is on PYTHONPATH; the product knows nothing of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

POINT, _, COUNT = os.environ.get("FAILPOINT", "").partition(":")
_hits = itertools.count(1)


def _hit(*_: object) -> None:
    if next(_hits) == int(COUNT):
        os._exit(137)


def _around(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    def crashing(*arguments: Any, **options: Any) -> Any:
        if not after:
            _hit()
        result = function(*arguments, **options)
        if after:
            _hit()
        return result

    return crashing


def _arm() -> None:
    after = POINT.startswith("after_")
    if POINT.endswith("_rename"):
        os.replace = _around(os.replace, after=after)  # pathlib and fsspec end here
    elif POINT.endswith("_commit"):
        from sqlalchemy import Engine, event
        from sqlalchemy.orm import Session

        if after:
            event.listen(Session, "after_commit", _hit)
        else:
            event.listen(Engine, "commit", _hit)
    elif POINT.endswith("_publish"):
        from app.queue import Broker

        Broker.notify = _around(Broker.notify, after=after)  # type: ignore[method-assign]


if POINT:
    _arm()
