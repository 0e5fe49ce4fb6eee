"""As much of Azure Blob Storage's protocol as the store speaks, in memory: for machines without Node.js, where Azurite
cannot run. `test_stores.py` asks both the same."""

from __future__ import annotations

import hashlib
import itertools
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "devstoreaccount1"


class Account(ThreadingHTTPServer):
    """Containers of blobs: {container: {name: (content, etag, metadata, written)}}."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.containers: dict[str, dict[str, tuple[bytes, str, dict[str, str], str]]] = {}
        self.blocks: dict[tuple[str, str, str], bytes] = {}
        self.lock, self.count = Lock(), itertools.count(1)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/{ACCOUNT}"


class _Answer(BaseHTTPRequestHandler):
    server: Account
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        _, account, container, *rest = [*unquote(address.path).split("/", 3)]
        asked = {name: value[0] for name, value in parse_qs(address.query, keep_blank_values=True).items()}
        if not self.headers.get("Authorization", "").startswith(f"SharedKey {account}:"):
            return self._say(403, "AuthenticationFailed")
        with self.server.lock:
            if rest:
                return self._blob(container, rest[0], asked, body)
            if self.command == "PUT":
                self.server.containers.setdefault(container, {})
                return self._say(201)
            if container not in self.server.containers:
                return self._say(404, "ContainerNotFound")
            if asked.get("comp") == "list":
                return self._say(200, headers={"Content-Type": "application/xml"}, body=self._list(container, asked))
            return self._say(200, headers={"ETag": '"0x1"', "Last-Modified": formatdate(usegmt=True)})

    do_PUT = do_HEAD = do_DELETE = do_GET

    def _blob(self, container: str, name: str, asked: dict[str, str], body: bytes) -> None:
        if container not in self.server.containers:
            return self._say(404, "ContainerNotFound")
        blobs = self.server.containers[container]
        there = blobs.get(name)
        if self.command == "PUT" and asked.get("comp") == "block":
            self.server.blocks[container, name, asked["blockid"]] = body
            return self._say(201)
        if there is None and self.command != "PUT":
            return self._say(404, "BlobNotFound")
        if there and self.headers.get("If-None-Match") == "*":
            return self._say(409, "BlobAlreadyExists")
        if (wanted := self.headers.get("If-Match")) and (there is None or there[1] != wanted):
            return self._say(412, "ConditionNotMet")
        if self.command == "DELETE":
            del blobs[name]
            return self._say(202)
        if self.command == "PUT":
            if asked.get("comp") == "blocklist":
                named = re.findall(r"<Latest>([^<]+)</Latest>", body.decode())
                body = b"".join(self.server.blocks.pop((container, name, one)) for one in named)
            given = {key.lower(): value for key, value in self.headers.items() if key.lower().startswith("x-ms-meta-")}
            there = blobs[name] = (body, f'"0x{next(self.server.count):X}"', given, formatdate(usegmt=True))
            return self._say(201, headers={"ETag": there[1], "Last-Modified": there[3]})
        assert there is not None
        content, etag, given, written = there
        headers = {"ETag": etag, "Last-Modified": written, "x-ms-blob-type": "BlockBlob", **given}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("x-ms-range") or self.headers.get("Range") or "")
        if self.command == "GET" and span and content:
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._say(206, headers=headers, body=content[first : last + 1])
        if self.command == "GET" and span:
            return self._say(416, "InvalidRange")
        return self._say(200, headers=headers, body=content)

    def _list(self, container: str, asked: dict[str, str]) -> bytes:
        prefix, delimiter, rows = asked.get("prefix", ""), asked.get("delimiter"), dict[str, str]()
        for name, (content, etag, said, written) in sorted(self.server.containers[container].items()):
            inner, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
            if not name.startswith(prefix):
                continue
            if delimiter and slash:
                folder = escape(f"{prefix}{inner}/")
                rows[folder] = f"<BlobPrefix><Name>{folder}</Name></BlobPrefix>"
                continue
            about = f"<Last-Modified>{written}</Last-Modified><Etag>{etag.strip(chr(34))}</Etag>"
            about += f"<Content-Length>{len(content)}</Content-Length><BlobType>BlockBlob</BlobType>"
            about = f"<Properties>{about}</Properties>"
            if "metadata" in asked.get("include", ""):
                said = {key.lower().removeprefix("x-ms-meta-"): value for key, value in said.items()}
                about += f"<Metadata>{''.join(f'<{key}>{value}</{key}>' for key, value in said.items())}</Metadata>"
            rows[name] = f"<Blob><Name>{escape(name)}</Name>{about}</Blob>"
        blobs = "".join(rows.values())
        return (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="{self.server.url}" '
            f'ContainerName="{container}"><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>'
        ).encode()

    def _say(
        self, status: int, code: str | None = None, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        if code:
            self.send_header("x-ms-error-code", code)
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        if body and status < 400:
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            self.send_header("Content-MD5", b64encode(digest).decode())
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("x-ms-version", "2025-01-05")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


@contextmanager
def account() -> Iterator[Account]:
    with Account() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
