"""Routes that are made when somebody first asks for one of them.

Each route costs as much as its import, and most installations are never asked for most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send


class Late(BaseRoute):
    """Stands for the routes below a prefix until the first request; then they take its place in the application.

    prefix  of their paths, such as `/monai/`
    load    imports them
    """

    def __init__(self, prefix: str, load: Callable[[], Sequence[BaseRoute]]):
        self._prefix, self.load = prefix, load

    def matches(self, scope: Scope) -> tuple[Match, dict[str, Any]]:
        """As the first of the routes that matches; a path of another prefix loads nothing."""
        if scope["type"] != "http" or not scope["path"].startswith(self._prefix):
            return Match.NONE, {}
        found = self.load()
        routes = scope["app"].router.routes
        if self in routes:
            place = routes.index(self)
            routes[place : place + 1] = found
        judged = [(*route.matches(scope), route) for route in found]
        for wanted in (Match.FULL, Match.PARTIAL):
            for match, child, route in judged:
                if match is wanted:
                    return match, {**child, "toposerve.late": route}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route answer that has matched."""
        await scope["toposerve.late"].handle(scope, receive, send)
