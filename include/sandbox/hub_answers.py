"""What the sandbox's hub and its store answer: the part of the hub's protocol that reads models."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from sandbox.ports import LOOPBACK
from sandbox.repositories import Blob, Commit, Repository, may_read

if TYPE_CHECKING:
    from sandbox.hub import Hub

_PAGE = 50  # commits in one answer, as on the real hub
_PIECE = 1 << 20
_AUTHORS = [{"user": "sandbox"}]


@dataclass(frozen=True)
class Request:
    """A request that was answered; names of `headers` in small letters, `store` where the store for large files did."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    store: bool


class _Refused(Exception):
    """An answer of 4xx, with the hub's own name of the trouble."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], hub: Hub) -> None:
        super().__init__(address, handler)
        self.hub = hub

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """What the hub and its store have in common."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: each in its own would wait for the other side's late ACK
    server: Server
    is_store: ClassVar[bool]

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        try:
            if fault := self.server.hub.fault(self.path, cuts=False):
                self.reply(fault.status, fault.headers, b"{}")
            else:
                self.answer(parts, query)
        except _Refused as refused:
            named = {"X-Error-Code": refused.code} if refused.code else {}
            body = json.dumps({"error": refused.message}).encode()
            self.reply(refused.status, {**named, "X-Error-Message": refused.message}, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def answer(self, parts: list[str], query: Mapping[str, str]) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.begin(status, {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        told = {name.lower(): value for name, value in self.headers.items()}
        asked = Request(self.command, self.path, told, status, self.is_store)
        self.server.hub.requests.append(asked)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, file: Path, size: int, headers: Mapping[str, str]) -> None:
        """The file, or the part of it that the request's Range asks for (`bytes=N-`)."""
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= size:
                raise _Refused(416, None, "Range Not Satisfiable")
            headers = {**headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self.begin(206 if asked else 200, {**headers, "Accept-Ranges": "bytes", "Content-Length": str(size - start)})
        if self.command == "HEAD":
            return
        cut = self.server.hub.fault(self.path, cuts=True)
        left = cut.after if cut else size - start
        with file.open("rb") as source:
            source.seek(start)
            while left > 0 and (piece := source.read(min(_PIECE, left))):
                self.wfile.write(piece)
                left -= len(piece)
        self.close_connection = cut is not None

    def log_message(self, *_: Any) -> None: ...


class Store(_Handler):
    """Large files, for those who bring a link that the hub has signed."""

    is_store = True

    def answer(self, parts: list[str], query: Mapping[str, str]) -> None:
        hub, sha256 = self.server.hub, parts[-1]
        if not hmac.compare_digest(query.get("signature", ""), hub.signature(sha256)):
            raise _Refused(403, None, "Forbidden")
        file = hub.repositories.blob(sha256)
        self.send_file(file, file.stat().st_size, {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"})


class Front(_Handler):
    """The hub itself: repositories, commits, trees, and files or where they are."""

    is_store = False

    def answer(self, parts: list[str], query: Mapping[str, str]) -> None:
        match parts:
            case ["api", "models", owner, name]:
                self._send(*self._info(f"{owner}/{name}", "main"))
            case ["api", "models", owner, name, "revision", revision]:
                self._send(*self._info(f"{owner}/{name}", revision))
            case ["api", "models", owner, name, "refs"]:
                repository = self._repository(f"{owner}/{name}")
                branches, tags = _refs("heads", repository.branches), _refs("tags", repository.tags)
                self._send({"branches": branches, "tags": tags, "converts": []})
            case ["api", "models", owner, name, "commits", revision]:
                self._send(*self._commits(f"{owner}/{name}", revision, int(query.get("p", "0"))))
            case ["api", "models", owner, name, "tree", revision, *_]:
                self._send(*self._tree(f"{owner}/{name}", revision, parts[6:], query.get("recursive") == "true"))
            case [owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise _Refused(404, None, "Not Found")

    def _send(self, content: Any, headers: Mapping[str, str] = {}) -> None:
        self.reply(200, headers, json.dumps(content).encode())

    def _repository(self, name: str) -> Repository:
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        repository = self.server.hub.repositories.get(name)
        if repository is None or not may_read(repository, bearer):
            # The hub does not tell what is private from what is not there.
            if bearer is None:
                raise _Refused(401, "RepoNotFound", "Repository not found")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, name: str, revision: str) -> tuple[Repository, Commit]:
        repository = self._repository(name)
        commit = repository.find(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _info(self, name: str, revision: str) -> tuple[Any, dict[str, str]]:
        repository, commit = self._commit(name, revision)
        content = {
            "id": name,
            "modelId": name,
            "sha": commit.id,
            "lastModified": _told(commit.time),
            "private": repository.readers is not None,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in commit.files],
        }
        return content, {}

    def _commits(self, name: str, revision: str, page: int) -> tuple[Any, dict[str, str]]:
        repository, commit = self._commit(name, revision)
        history = list(repository.history(commit))
        shown = [
            {
                "id": one.id,
                "title": one.message,
                "message": "",
                "authors": [{"user": "sandbox"}],
                "date": _told(one.time),
            }
            for one in history[page * _PAGE : (page + 1) * _PAGE]
        ]
        if len(history) <= (page + 1) * _PAGE:
            return shown, {}
        following = f"{self.server.url}{urlsplit(self.path).path}?p={page + 1}"
        return shown, {"Link": f'<{following}>; rel="next"'}

    def _tree(self, name: str, revision: str, below: list[str], recursive: bool) -> tuple[Any, dict[str, str]]:
        _, commit = self._commit(name, revision)
        start = "".join(f"{part}/" for part in below)
        entries: dict[str, Any] = {}
        for path, blob in commit.files.items():
            inner = path.removeprefix(start)
            if not path.startswith(start):
                continue
            if "/" in inner and not recursive:
                folder = start + inner.split("/")[0]
                oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
            else:
                entries[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path, **_lfs(blob)}
        return list(entries.values()), {}

    def _file(self, name: str, revision: str, path: str) -> None:
        repository, commit = self._commit(name, revision)
        hub = self.server.hub
        if repository.gated:
            raise _Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        blob = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.id}
        if blob is None:
            self.reply(404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif blob.large:
            link = f"{hub.store_url}/{blob.sha256}?signature={hub.signature(blob.sha256)}"
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "Location": link}
            self.reply(HTTPStatus.FOUND, headers)
        else:
            headers |= {"ETag": f'"{blob.oid}"', "Content-Type": "text/plain"}
            self.send_file(hub.repositories.blob(blob.sha256), blob.size, headers)


def _refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in named.items()]


def _lfs(blob: Blob) -> dict[str, Any]:
    return {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.large else {}


def _told(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z"
