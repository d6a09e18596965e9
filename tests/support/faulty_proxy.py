"""An HTTP proxy that goes wrong on purpose: what stands between a training and its object store in tests.

It runs in a process of its own and passes reads on to one server on this machine. Which request meets which fault is a
function of the seed, of what is asked for, and of how often that was asked before: the same requests meet the same faults,
in whatever order they arrive, and a second try draws again.
"""

import asyncio
import json
import random
import re
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.helper_processes import Child, say

LOOPBACK = "127.0.0.1"
KINDS = ("unavailable", "reset", "cut", "short", "slow", "hang", "wrong")
READS = ("GET", "HEAD")
SLOW_PIECES = 10
END = b"\r\n\r\n"


@dataclass(frozen=True)
class Faults:
    """Shares (0 … 1, together at most 1) of the requests that go wrong, each in its way; the others pass."""

    unavailable: float = 0.0  # answered 503 or 500
    reset: float = 0.0  # the connection is reset before an answer
    cut: float = 0.0  # the connection is closed after half of the promised body
    short: float = 0.0  # half of the body, as if that were all of it
    slow: float = 0.0  # the body comes in pieces, over `slow_s`
    hang: float = 0.0  # half of the body, then nothing for as long as the client waits
    wrong: float = 0.0  # one byte of the body is another one
    slow_s: float = 0.4
    latency_s: float = 0.0  # every answer starts this much later
    only: str = ""  # a regular expression: faults hit the paths in which it is found
    seed: int = 0


@dataclass
class Request:
    """One that the proxy has seen: `sent` bytes of the answer's body, `in_flight` requests at its start, it included."""

    method: str
    path: str
    range: str
    fault: str
    in_flight: int
    status: int = 0
    sent: int = 0


class Proxy:
    """A running proxy as tests see it, on 127.0.0.1 at `port`."""

    def __init__(self, upstream: int) -> None:
        self._child = Child("tests.support.faulty_proxy", str(upstream))
        self.port: int = self._child.ready["port"]

    def inject(self, faults: Faults | None = None) -> None:
        """Let these faults happen from now on, or none; requests and draws made so far are forgotten."""
        self._child.ask({"inject": asdict(faults or Faults())})

    def requests(self) -> list[Request]:
        """Every request since the last `inject`, in order of arrival."""
        return [Request(**request) for request in self._child.ask({})["requests"]]

    def stop(self) -> None:
        """End the process."""
        self._child.stop()


class _Service:
    """The proxy's own process."""

    def __init__(self, upstream: int) -> None:
        self._upstream, self._in_flight = upstream, 0
        self._inject(Faults())

    def _inject(self, faults: Faults) -> None:
        self._faults = faults
        self._requests: list[Request] = []
        self._asked: Counter[str] = Counter()

    def command(self, line: bytes) -> dict[str, Any]:
        """The reply to a message of `Proxy`."""
        message = json.loads(line)
        if "inject" in message:
            self._inject(Faults(**message["inject"]))
        return {"requests": [asdict(request) for request in self._requests]}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of a client's connection. Its end, by whichever side, is an exception; so is the end of the process."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(END)
                self._in_flight += 1
                try:
                    await self._exchange(head, reader, writer)
                finally:
                    self._in_flight -= 1
        writer.close()

    async def _exchange(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        asked = f"{method} {path} {_header(head, 'range')}"
        draw = random.Random(f"{self._faults.seed} {self._asked[asked]} {asked}")
        self._asked[asked] += 1
        fault = _pick(self._faults, draw) if re.search(self._faults.only, path) else ""
        request = Request(method, path, _header(head, "range"), fault, self._in_flight)
        self._requests.append(request)
        await asyncio.sleep(self._faults.latency_s)
        if fault == "reset":
            _reset(writer)
        answer, body = (_empty(draw.choice((500, 503))), b"") if fault == "unavailable" else await self._ask(head)
        request.status = int(answer.split(b" ", 2)[1])
        if body and fault == "short":
            body = body[: len(body) // 2]
        elif body and fault == "wrong":
            place = draw.randrange(len(body))
            body = b"".join((body[:place], bytes([body[place] ^ draw.randrange(1, 256)]), body[place + 1 :]))
        if method != "HEAD":
            answer = b"".join((_without(answer, "content-length"), b"content-length: %d\r\n" % len(body)))
        writer.write(answer + b"\r\n")
        await self._send(request, body, reader, writer)

    async def _ask(self, head: bytes) -> tuple[bytes, bytes]:
        """The server's answer: status line with headers, and body."""
        if head.split(b" ")[0].decode() not in READS:
            return _empty(405), b""
        reader, writer = await asyncio.open_connection(LOOPBACK, self._upstream)
        writer.write(_without(head[:-2], "connection") + b"connection: close\r\n\r\n")
        answer = await reader.readuntil(END)
        # Not to the end of the connection: moto's server keeps it open for another 10 ms.
        body = (
            b"" if head.startswith(b"HEAD") else await reader.readexactly(int(_header(answer, "content-length") or 0))
        )
        writer.close()
        return _without(answer[:-2], "connection"), body

    async def _send(
        self, request: Request, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        partly = request.fault in ("cut", "hang")
        body = body[: len(body) // 2] if partly else body
        pieces = SLOW_PIECES if request.fault == "slow" else 1
        length = -(-len(body) // pieces) or 1
        for start in range(0, len(body), length):
            writer.write(body[start : start + length])
            await writer.drain()
            request.sent += len(body[start : start + length])
            await asyncio.sleep(self._faults.slow_s / pieces if pieces > 1 else 0)
        if request.fault == "hang":
            while await reader.read(1):
                pass
        # The body of a request that was refused is still on its way.
        if partly or request.method not in READS:
            raise ConnectionAbortedError


def _pick(faults: Faults, draw: random.Random) -> str:
    """The fault of one request, or ""."""
    left = draw.random()
    for kind in KINDS:
        left -= getattr(faults, kind)
        if left < 0:
            return kind
    return ""


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the client gets RST and not an orderly end."""
    linger_no_time = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_no_time)
    writer.transport.abort()
    raise ConnectionResetError


def _empty(status: int) -> bytes:
    return b"HTTP/1.1 %d Not today\r\ncontent-length: 0\r\n" % status


def _header(head: bytes, name: str) -> str:
    found = re.search(rf"^{name}: *(.*?)\r$", head.decode("latin-1"), re.IGNORECASE | re.MULTILINE)
    return found[1] if found else ""


def _without(head: bytes, name: str) -> bytes:
    """Headers of a request or an answer, but for one; ends with the last header's line end."""
    return re.sub(rb"^%s:.*\r\n" % name.encode(), b"", head, flags=re.IGNORECASE | re.MULTILINE)


async def serve(upstream: int) -> None:
    """Run until the standard input ends."""
    service = _Service(upstream)
    server = await asyncio.start_server(service.connection, LOOPBACK, 0)
    say({"port": server.sockets[0].getsockname()[1]})
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        say(service.command(line))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
