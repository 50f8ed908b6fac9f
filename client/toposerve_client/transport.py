"""Performs the steps of flows, blocking or with asyncio, and makes methods of flows.

    class Datasets(Group[M]):
        @operation
        def get(self, name: str) -> Flow[Json]: ...

`Datasets[Blocking].get("vessels")` returns the object, `Datasets[Async].get("vessels")` something to await.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import IO, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

import httpx

from toposerve_client.errors import Json
from toposerve_client.requests import (
    OCTETS,
    Flow,
    Item,
    Lines,
    Listing,
    NextLine,
    Open,
    Pause,
    Request,
    Save,
    Step,
    exchange,
    new_key,
)

P = ParamSpec("P")
T = TypeVar("T")
PIECE = 256 * 1024
"""Bytes of a file that are read at once."""
CONNECT_S = 10.0


class Connection:
    """The address of a service, who asks, and how patiently."""

    def __init__(self, url: str | None, key: str | None, timeout_s: float, retries: int, project: str | None = None):
        given = (url or os.environ.get("TOPOSERVE_URL") or "http://127.0.0.1:8000").strip()
        self.url = (given if "://" in given else f"http://{given}").rstrip("/")
        parsed = httpx.URL(self.url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{given} is no address of a service. Give http://host:port, or host:port.")
        key = key or os.environ.get("TOPOSERVE_KEY")
        project = project or os.environ.get("TOPOSERVE_PROJECT")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.retries = retries
        self.options: dict[str, Any] = {
            "base_url": self.url,
            "headers": headers | ({"X-Project": project} if project else {}),
            "timeout": httpx.Timeout(timeout_s, connect=CONNECT_S),
        }


def _built(http: httpx.Client | httpx.AsyncClient, request: Request, content: Any) -> httpx.Request:
    """A request of httpx, whose body is `content`."""
    headers = dict(request.headers)
    if content is not None:
        headers.setdefault("Content-Type", OCTETS)
    if isinstance(request.content, Path):
        headers["Content-Length"] = str(request.content.stat().st_size)
    params = {name: value for name, value in request.params.items() if value is not None}
    below = http.base_url.path.rstrip("/")  # of a service behind a path prefix, whose links begin with it
    return http.build_request(
        request.method,
        request.path.removeprefix(below),
        params=params or None,
        headers=headers,
        content=content,
        json=request.json,
        files=request.files,
    )


class _Walk(Generic[T]):
    """A flow, step by step: each step is performed, and what came of it told, before the next is asked for."""

    def __init__(self, flow: Listing[T]):
        self._flow = flow
        self._resume: Callable[[], Step | Item[T]] = partial(next, flow)

    def __iter__(self) -> _Walk[T]:
        return self

    def __next__(self) -> Step | Item[T]:
        resume, self._resume = self._resume, partial(next, self._flow)
        return resume()

    def gave(self, value: Any) -> None:
        """What came of the last step."""
        self._resume = partial(self._flow.send, value)

    def failed(self, error: Exception) -> None:
        """The last step raised."""
        self._resume = partial(self._flow.throw, error)


def _ending(flow: Flow[T]) -> Listing[T]:
    """A flow that gives the value that another ends in."""
    yield Item((yield from flow))


class Mode:
    """How steps are performed."""

    def __init__(self, connection: Connection):
        self.connection = connection


class Blocking(Mode):
    """Performs steps in the thread of the caller."""

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self._http = httpx.Client(**connection.options)

    def run(self, flow: Flow[T]) -> T:
        """The value that a flow ends in."""
        (value,) = self.iterate(_ending(flow))
        return value

    def iterate(self, flow: Listing[T]) -> Iterator[T]:
        """The values that a flow gives on its way."""
        walk = _Walk(flow)
        with ExitStack() as opened:
            for step in walk:
                if isinstance(step, Item):
                    yield step.value
                    continue
                try:
                    walk.gave(self._perform(step, opened))
                except httpx.TransportError as error:
                    walk.failed(error)

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def _perform(self, step: Step, opened: ExitStack) -> Any:
        match step:
            case Request():
                return self._send(step)
            case Pause(seconds):
                time.sleep(seconds)
            case NextLine(lines):
                return next(lines.iterator, None)
            case Open(request):
                response = opened.enter_context(closing(self._send(request, stream=True)))
                if response.is_error:
                    response.read()
                return Lines(response, response.iter_lines())
            case Save(request, path):
                with closing(self._send(request, stream=True)) as response:
                    if response.is_error:
                        response.read()
                    else:
                        with arriving(path) as file:
                            file.writelines(response.iter_bytes())
                    return response
        return None

    def _send(self, request: Request, *, stream: bool = False) -> httpx.Response:
        if not isinstance(request.content, Path):
            return self._http.send(_built(self._http, request, request.content), stream=stream)
        with request.content.open("rb") as file:
            pieces = iter(partial(file.read, PIECE), b"")
            return self._http.send(_built(self._http, request, pieces), stream=stream)


class Async(Mode):
    """Performs steps with asyncio."""

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self._http = httpx.AsyncClient(**connection.options)

    async def run(self, flow: Flow[T]) -> T:
        """The value that a flow ends in."""
        (value,) = [each async for each in self.iterate(_ending(flow))]
        return value

    async def iterate(self, flow: Listing[T]) -> AsyncIterator[T]:
        """The values that a flow gives on its way."""
        walk = _Walk(flow)
        async with AsyncExitStack() as opened:
            for step in walk:
                if isinstance(step, Item):
                    yield step.value
                    continue
                try:
                    walk.gave(await self._perform(step, opened))
                except httpx.TransportError as error:
                    walk.failed(error)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _perform(self, step: Step, opened: AsyncExitStack) -> Any:
        match step:
            case Request():
                return await self._send(step)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case NextLine(lines):
                return await anext(lines.iterator, None)
            case Open(request):
                response = await opened.enter_async_context(aclosing(await self._send(request, stream=True)))
                if response.is_error:
                    await response.aread()
                return Lines(response, response.aiter_lines())
            case Save(request, path):
                async with aclosing(await self._send(request, stream=True)) as response:
                    if response.is_error:
                        await response.aread()
                    else:
                        with arriving(path) as file:
                            async for piece in response.aiter_bytes():
                                await asyncio.to_thread(file.write, piece)
                    return response
        return None

    async def _send(self, request: Request, *, stream: bool = False) -> httpx.Response:
        if not isinstance(request.content, Path):
            return await self._http.send(_built(self._http, request, request.content), stream=stream)
        with request.content.open("rb") as file:

            async def pieces() -> AsyncIterator[bytes]:
                while piece := await asyncio.to_thread(file.read, PIECE):
                    yield piece

            return await self._http.send(_built(self._http, request, pieces()), stream=stream)


@contextmanager
def arriving(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which bears its name only once it is complete."""
    unfinished = path.with_name(f".{path.name}.{new_key()}")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


M = TypeVar("M", bound=Mode)


class Group(Generic[M]):
    """What can be asked about one noun."""

    def __init__(self, mode: M):
        self._mode = mode

    def _ask(
        self, method: str, path: str, *, save: Path | None = None, key: str | None = None, **facts: Any
    ) -> Flow[httpx.Response]:
        """The answer to a request, of which `facts` are the rest; POST carries an Idempotency-Key, a new one each time
        unless `key` is given.
        """
        headers = dict(facts.pop("headers", {}))
        if method == "POST":
            headers["Idempotency-Key"] = key or new_key()
        request = Request(method, path, headers=headers, **facts)
        connection = self._mode.connection
        return (yield from exchange(request, connection.url, connection.retries, path=save))

    def _json(self, method: str, path: str, **facts: Any) -> Flow[Json]:
        """The JSON object of an answer."""
        answer = yield from self._ask(method, path, **facts)
        return cast(Json, answer.json())

    def _listed(self, path: str, **params: Any) -> Listing[Any]:
        """Every item of a list, page by page."""
        cursor = None
        while True:
            page = yield from self._json("GET", path, params=params | {"cursor": cursor})
            for item in page["items"]:
                yield Item(item)
            if (cursor := page["next_cursor"]) is None:
                return


class operation(Generic[P, T]):  # noqa: N801, a decorator
    """A method made of a flow: it returns the flow's value, or something to await that does."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]]):
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, instance: Group[Blocking], owner: Any = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Group[Async], owner: Any = None) -> Callable[P, Awaitable[T]]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> operation[P, T]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else _bound(self._flow, instance, instance._mode.run)


class listing(Generic[P, T]):  # noqa: N801, a decorator
    """A method made of a flow that gives values on its way: a generator of them, for `for` or `async for`."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Listing[T]]):
        self._flow = flow
        self.__doc__ = flow.__doc__

    @overload
    def __get__(self, instance: Group[Blocking], owner: Any = None) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, instance: Group[Async], owner: Any = None) -> Callable[P, AsyncIterator[T]]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> listing[P, T]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else _bound(self._flow, instance, instance._mode.iterate)


def _bound(flow: Callable[..., Any], instance: Any, perform: Callable[[Any], Any]) -> Callable[..., Any]:
    @wraps(flow)
    def method(*values: Any, **named: Any) -> Any:
        return perform(flow(instance, *values, **named))

    return method
