"""A gateway on loopback behind which each host answers as a test says: by what a picture holds."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = tuple[int, Any]
STABLE, CANARY = "prev-digits-predictor.models.localhost", "latest-digits-predictor.models.localhost"


def labels(**shares: float) -> Said:
    """The handler's answer to one picture: these labels with these probabilities."""
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    return 200, {"predictions": [[{"label": label, "score": score} for label, score in ordered]]}


@dataclass
class Answering:
    """`says` answers (host, picture). `seen` counts the requests by host, and `most` how many of them were under way at
    once."""

    says: Callable[[str, bytes], Said]
    url: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    pictures: list[bytes] = field(default_factory=list)
    most: Counter[str] = field(default_factory=Counter)


@contextmanager
def answering(says: Callable[[str, bytes], Said]) -> Iterator[Answering]:
    one, lock, under_way = Answering(says), threading.Lock(), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            host = self.headers["Host"]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            picture = base64.b64decode(body["instances"][0]["data"])
            with lock:
                one.seen[host] += 1
                one.pictures.append(picture)
                under_way[host] += 1
                one.most[host] = max(one.most[host], under_way[host])
            status, answer = one.says(host, picture)
            with lock:
                under_way[host] -= 1
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield one
    finally:
        server.shutdown()
        server.server_close()
