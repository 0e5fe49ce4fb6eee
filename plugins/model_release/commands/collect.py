"""`python -m model_release collect PLACE`: keeps a few pictures of what users send, for `rollout.shadow`.

It runs for ever, listens for the CloudEvents of KServe's logger (mode: request), and keeps at most so many pictures for
so long in PLACE, a folder or a store's prefix, spread over that time. It listens on loopback unless told, and answers
200 whatever came: the logger waits for nothing. include/manifests/collector.yaml is its Deployment.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.commands import surroundings
from model_release.errors import ReleaseError, SpecError
from model_release.spec import parse_duration

if TYPE_CHECKING:
    from model_release.release.collect import Collector, PictureStore

# Requests at once, and seconds that each may take to say what it has, however it does.
_AT_ONCE = 16
_SLOWEST = 10.0
_TIDY = 60.0
# Bytes of a request that is not kept, which are read all the same: more than any server takes.
_READ = 1 << 26


def register(commands: Any) -> None:
    parser = commands.add_parser("collect", help="keep a few pictures of what users send, for rollout.shadow")
    parser.description = (__doc__ or "").split("\n\n", 1)[1]
    parser.add_argument("place", help="a folder, or a store's prefix that ends in /")
    parser.add_argument("--most", type=int, default=500, help="pictures that are kept (500)")
    parser.add_argument("--keep", default="1d", help="the longest time that one is kept (1d)")
    parser.add_argument(
        "--service", action="append", default=[], help="namespace/name of those to take; all unless said"
    )
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="(127.0.0.1:8080)")
    surroundings.add_options(parser, store=True)
    parser.set_defaults(run=collect)


def collect(options: argparse.Namespace) -> str:
    """Serves until SIGTERM or SIGINT."""
    from model_release.release.collect import Collector

    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit() or options.most < 1:
        raise SpecError(
            f"--listen {options.listen} --most {options.most}; 127.0.0.1:8080 and 500 are right, for example"
        )
    try:
        keep = parse_duration(options.keep)
    except ValueError as error:
        raise SpecError(f"--keep: {error}") from error
    if not keep:
        raise SpecError(f"--keep: {options.keep} keeps nothing; 1d is right, for example")
    collector = Collector(_place(options), options.most, keep, frozenset(options.service))
    collector.tidy()  # says at once what is wrong with the place
    try:
        door = Door((host, int(port)), collector)
    except (OSError, OverflowError) as error:
        raise SpecError(f"--listen {options.listen}: {error}") from error
    with door:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=door.shutdown).start())
        address = f"{door.server_address[0]!s}:{door.server_address[1]}"
        print(f"collecting at {address} into {options.place}: {options.most} pictures for {options.keep}", flush=True)
        door.serve_forever()
    return f"{collector.kept} pictures were kept."


def _place(options: argparse.Namespace) -> PictureStore:
    from model_release.release.collect import PictureFolder
    from model_release.store.bucket import Bucket

    if "://" in options.place:
        return Bucket(surroundings.reach(options, options.place), options.place)
    folder = Path(options.place)
    if not folder.is_dir():
        raise SpecError(f"{folder} is no folder; make it first, for whoever may read what users send")
    return PictureFolder(folder)


class Door(ThreadingHTTPServer):
    """Hears events, and now and then keeps a picture of one."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], collector: Collector) -> None:
        super().__init__(address, _Event)
        self.collector, self.taking = collector, threading.Lock()
        self._since: dict[socket.socket, float] = {}  # when each of those that are heard was let in
        self._tidied = time.monotonic()

    def service_actions(self) -> None:
        """Who is slow makes room for others; and what nobody sends anything to removes what is old all the same."""
        now = time.monotonic()
        for request, since in list(self._since.items()):
            if now - since >= _SLOWEST:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
        if now - self._tidied >= _TIDY:
            self._tidied = now
            with self.taking:
                _telling(self.collector.tidy)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._since) >= _AT_ONCE:
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who is gone gets no answer, and is no line in a log."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Event(BaseHTTPRequestHandler):
    timeout = _SLOWEST
    server: Door

    def do_POST(self) -> None:
        from model_release.release.collect import LARGEST_BODY

        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 12 else 0
        collector, headers = self.server.collector, dict(self.headers.items())
        if 0 < size <= LARGEST_BODY and collector.wants(headers):
            body = self.rfile.read(size)
            with self.server.taking:
                if len(body) == size and collector.wants(headers):  # half a picture is none
                    _telling(lambda: collector.take(body))
        elif size <= _READ:  # or the sender would be told that it was cut off
            while size > 0 and (some := self.rfile.read(min(size, 1 << 16))):
                size -= len(some)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """What users send is in no log."""


def _telling(do: Any) -> None:
    """A place that is away takes nothing; the next picture is tried again."""
    try:
        do()
    except (ReleaseError, OSError) as error:
        print(f"not kept: {error}", file=sys.stderr, flush=True)
