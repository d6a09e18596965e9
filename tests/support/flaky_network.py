"""A network that drops connections: bytes pass both ways to one server until a connection has had enough of them.

Below HTTP, so that writes meet it too; faulty_proxy.py knows more faults and passes reads only.
"""

import asyncio
import random
import threading
from contextlib import suppress

from tests.support.faulty_proxy import LOOPBACK


class FlakyNetwork:
    """Listens on 127.0.0.1 at `port`. Of all connections a share of `drop` ends after up to `bytes_before` bytes.

    While it is `down`, every connection ends with the next byte; while it is `stalled`, none passes and nothing ends.
    """

    def __init__(self, upstream: int) -> None:
        self.drop, self.bytes_before, self.dropped = 0.0, 1, 0
        self.down = self.stalled = False
        self._upstream, self._draw = upstream, random.Random(0)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        """Take no more connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connection, LOOPBACK, 0))
        self.port = int(server.sockets[0].getsockname()[1])
        started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.01))  # sockets that were aborted are closed in the next round
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._draw.randrange(self.bytes_before) if self._draw.random() < self.drop else None
        ends, ways = [writer], []
        try:
            there_reader, there_writer = await asyncio.open_connection(LOOPBACK, self._upstream)
            ends.append(there_writer)
            allowance = [left]
            ways = [
                asyncio.ensure_future(self._pass(*pair, allowance))
                for pair in ((reader, there_writer), (there_reader, writer))
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.transport.abort()
            for way in ways:
                way.cancel()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: list[int | None]
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                while self.stalled:
                    await asyncio.sleep(0.01)
                if allowance[0] is not None:
                    allowance[0] -= len(data)
                if self.down or (allowance[0] or 0) < 0:
                    self.dropped += 1
                    return
                writer.write(data)
                await writer.drain()
            await asyncio.sleep(0.05)  # the answer may still be on its way
