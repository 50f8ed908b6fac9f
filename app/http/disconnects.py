"""Work for a caller who may hang up before it is done."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request, Response
from starlette.types import Scope

from app.services import Services
from app.serving.pipeline import Stop
from app.serving.slots import CallerLeft


async def while_connected(request: Request, services: Services, work: Callable[[Stop], Response]) -> Response:
    """What `work` answers, in a thread of those that predict; it is asked to stop when the client hangs up.

    The body of the request must have been read. Raises Busy when every place is taken.
    """
    try:
        return await services.registry.slots.run(work, gone=_hung_up(request), kind=kind_of(request.scope))
    except CallerLeft:
        return Response(status_code=499)


def kind_of(scope: Scope) -> str:
    """What requests are alike in how long they take: the address, and twice the number of bytes or half of it."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return f"{scope['path'][:256]} {int(announced).bit_length() if announced.isdigit() else '-'}"


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
