"""Latency of admitted predictions under tenfold load, and how honest Retry-After is.

    python benchmarks/overload.py [--seconds 20] [--factor 10] [--clients 200] [--model S]

The gateway has its default settings. *alone*: one client that pauses between its requests. *open loop*: requests come
at `factor` times the rate that two clients without rest get, whoever is waiting. *no rest*: `clients` connections that
ask again at once, whatever the answer was. *obedient*: the same that wait for as long as Retry-After says; `came back`
is the share of them that was then let in.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import Gateway, networks

Answer = tuple[int, int, float]
"""Status, Retry-After and seconds."""


class Client:
    """One kept connection."""

    def __init__(self, port: int, request: bytes):
        self._port, self._request = port, request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> Answer:
        """One request to its last byte."""
        started = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(_number(head, b"content-length"))
        if b"connection: close" in head:
            writer.close()
            self._streams = None
        return int(head[9:12]), _number(head, b"retry-after"), time.perf_counter() - started


def _number(head: bytes, name: bytes) -> int:
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return int(rest.split(b"\r\n")[0]) if found else 0


Make = Callable[[], Client]


async def alone(make: Make, seconds: float) -> list[Answer]:
    """One client that pauses for as long as it waited."""
    client, answers, until = make(), [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        answers.append(await client.ask())
        await asyncio.sleep(answers[-1][2])
    return answers


async def no_rest(make: Make, seconds: float, clients: int) -> list[Answer]:
    """Clients that ask again at once."""
    answers: list[Answer] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        client = make()
        while time.perf_counter() < until:
            answers.append(await client.ask())

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers


async def open_loop(make: Make, seconds: float, rate: float) -> list[Answer]:
    """Requests at a rate, each on a connection that is free."""
    free: list[Client] = []

    async def one() -> Answer:
        client = free.pop() if free else make()
        answer = await client.ask()
        free.append(client)
        return answer

    started, sent = time.perf_counter(), []
    while (now := time.perf_counter() - started) < seconds:
        while len(sent) < now * rate:
            sent.append(asyncio.create_task(one()))
        await asyncio.sleep(0.001)
    return await asyncio.gather(*sent)


async def obedient(make: Make, seconds: float, clients: int) -> tuple[list[Answer], float]:
    """Clients that do as Retry-After says, and the share of those who came back then that was let in."""
    answers: list[Answer] = []
    back: list[bool] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        client, told = make(), 0
        while time.perf_counter() + told < until:
            await asyncio.sleep(told)
            answer = await client.ask()
            answers.append(answer)
            if told:
                back.append(answer[0] == 200)
            told = answer[1]

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers, float(np.mean(back)) if back else 1.0


def row(name: str, answers: list[Answer], base_p99: float | None, seconds: float, more: str = "") -> float:
    """Print one line; the p99 of what was admitted."""
    served = [spent for status, _, spent in answers if status == 200]
    others = sorted({status for status, _, _ in answers} - {200, 503})
    p50, p99 = np.quantile(served, [0.5, 0.99]) * 1000
    times = f"{p99 / base_p99:.2f}x" if base_p99 else "1.00x"
    refused = sum(status == 503 for status, _, _ in answers)
    silent = sum(status == 503 and not told for status, told, _ in answers)
    print(
        f"| {name} | {len(answers)} | {len(served)} | {len(served) / seconds:.0f} | {refused} | {silent} | {p50:.1f} |"
        f" {p99:.1f} | {times} | {more} |",
        flush=True,
    )
    assert not others, f"answers with other statuses: {others}"
    return p99


def measure(port: int, request: bytes, arguments: argparse.Namespace) -> None:
    """Print the table."""

    def make() -> Client:
        return Client(port, request)

    def run(work: Awaitable[list[Answer]]) -> list[Answer]:
        async def awaited() -> list[Answer]:
            return await work

        return asyncio.run(awaited())

    seconds = arguments.seconds
    run(alone(make, 2))
    print("| load | sent | admitted | a second | refused | without Retry-After | p50 ms | p99 ms | beside alone | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    base = row("alone", run(alone(make, seconds / 2)), None, seconds / 2)
    full = run(no_rest(make, 5, 2))
    rate = arguments.factor * len(full) / 5
    row("two without rest", full, base, 5)
    row(f"open loop, {rate:.0f} a second", run(open_loop(make, seconds, rate)), base, seconds)
    row(f"{arguments.clients} without rest", run(no_rest(make, seconds, arguments.clients)), base, seconds)
    answers, share = asyncio.run(obedient(make, 2 * seconds, arguments.clients))
    row(f"{arguments.clients} obedient", answers, base, 2 * seconds, f"{share:.0%} came back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--model", choices=["T", "S", "M"], default="S")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = networks(Path(folder))
        gateway = Gateway(Path(folder), models)
        gateway.rest()
        body = models[arguments.model]["png"]
        request = (
            f"POST {gateway.path.format(name=arguments.model)} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer"
            f" {gateway.key}\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        try:
            measure(gateway.port, request, arguments)
        finally:
            gateway.stop()


if __name__ == "__main__":
    main()
