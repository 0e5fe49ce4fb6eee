"""A Hugging Face hub for a laptop: it serves the repositories of a folder, as huggingface_hub expects it.

As on the real one, small files come from the hub itself, and large ones (weights) from a store with an address of its
own, to which the hub sends the client with a signed link. `python -m sandbox.hub FOLDER --port N` serves until SIGTERM;
`HF_ENDPOINT=http://127.0.0.1:N` makes clients ask here. On loopback only.

For tests it can be made to fail: `answer_with` and `cut_download`.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.hub_answers import Front, Request, Server, Store
from sandbox.ports import LOOPBACK
from sandbox.repositories import Repositories


@dataclass
class _Fault:
    """What the next requests whose path contains `where` get instead of their answer."""

    where: str
    times: int
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 0


class Hub:
    """The hub of the repositories in `folder`; `port` 0 takes a free one. Start and stop it, or use it in a `with`."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.repositories = Repositories(folder)
        self.add_commit, self.tag = self.repositories.add_commit, self.repositories.tag
        self.protect = self.repositories.protect
        self.requests: deque[Request] = deque(maxlen=10_000)
        self.secret = secrets.token_bytes(32)
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._servers = [Server((LOOPBACK, port), Front, self), Server((LOOPBACK, 0), Store, self)]

    @property
    def url(self) -> str:
        """The address for `HF_ENDPOINT`."""
        return self._servers[0].url

    @property
    def store_url(self) -> str:
        """The address of the store for large files."""
        return self._servers[1].url

    def start(self) -> Hub:
        """Begins to answer, in threads."""
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Ends answering, and frees the ports."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer_with(self, status: int, where: str = "", *, times: int = 1, headers: Mapping[str, str] = {}) -> None:
        """Lets the next `times` requests whose path contains `where` fail with `status`."""
        self._faults.append(_Fault(where, times, status, headers))

    def cut_download(self, where: str, *, after: int, times: int = 1) -> None:
        """Lets the next `times` downloads whose path contains `where` break off after so many bytes."""
        self._faults.append(_Fault(where, times, after=after))

    def fault(self, path: str, *, cuts: bool) -> _Fault | None:
        """The fault that this request is to meet, if any; counted as met."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.where in path and bool(fault.status) != cuts:
                    fault.times -= 1
                    return fault
        return None

    def signature(self, sha256: str) -> str:
        """What a link to the store has to bear: this process gave it to somebody who may read the file."""
        return hmac.new(self.secret, sha256.encode(), hashlib.sha256).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.hub", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the repositories; others may add to them meanwhile")
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Hub(options.folder, options.port) as hub:
        print(hub.url, flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
