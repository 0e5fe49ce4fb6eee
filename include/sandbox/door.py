"""`python -m sandbox.door 0.0.0.0:8333 127.0.0.1:8334 -- COMMAND…`: one door of a server that keeps all of its own on
loopback.

SeaweedFS asks nobody who it is at its filer, volume and master ports, and binds them where it binds S3. In a network of
containers everybody could write there; so it stays on loopback, and this is the only way in: bytes go through unread.
It ends with the command, with its code, and hands its signals on.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial


def main(argv: Sequence[str]) -> int:
    """The command's exit code; 2 with a line where the words are others than these."""
    try:
        here, there, dash, *command = argv
        assert dash == "--"
        assert command
        doors = [(host, int(port)) for host, _, port in (one.rpartition(":") for one in (here, there))]
    except (ValueError, AssertionError):
        print("door: HOST:PORT HOST:PORT -- COMMAND… is right", file=sys.stderr)
        return 2
    return asyncio.run(_run(doors[0], doors[1], command))


async def _run(here: tuple[str, int], there: tuple[str, int], command: Sequence[str]) -> int:
    child = await asyncio.create_subprocess_exec(*command)

    def end(number: int) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    async with await asyncio.start_server(partial(_through, there), *here):
        return await child.wait()


async def _through(there: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner, outer = await asyncio.open_connection(*there)
    except OSError:  # it does not answer yet, or any more: nor does its door
        writer.close()
        return
    await asyncio.gather(_pour(reader, outer), _pour(inner, writer))


async def _pour(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """All that comes, and its end; who is gone is told to the other side."""
    try:
        while part := await source.read(1 << 16):
            sink.write(part)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
    except (ConnectionError, OSError):
        sink.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
