"""Answers that go on: watches of objects and logs of pods."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

from aiohttp import ClientConnectionResetError, web

from sandbox.interfaces import Manifest, RevisionKey, Workloads
from sandbox.kube import errors, selectors
from sandbox.kube.pods import INIT, MAIN, runner
from sandbox.kube.resources import Kind
from sandbox.kube.store import Change, Store
from sandbox.kube.tables import table

DEFAULT_TIMEOUT = 1800.0
BOOKMARK_EVERY = 30.0
LOG_POLL = 0.3


class _Watch:
    """One client's watch: what it wants to see, and in which form."""

    def __init__(self, request: web.Request, store: Store, kind: Kind, namespace: str) -> None:
        query = request.query
        self._store, self._kind, self._namespace = store, kind, namespace
        self._matches = selectors.both(query.get("labelSelector"), query.get("fieldSelector"))
        self._as_table = "as=Table" in request.headers.get("Accept", "")
        self._include = query.get("includeObject", "Metadata")

    def line(self, type_: str, obj: Manifest) -> bytes:
        if self._as_table and type_ in ("ADDED", "MODIFIED", "DELETED"):
            obj = table(self._kind, [obj], obj["metadata"]["resourceVersion"], self._include)
        return json.dumps({"type": type_, "object": obj}).encode() + b"\n"

    def bookmark(self, version: int, initial: bool = False) -> bytes:
        annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if initial else {}
        meta = {"resourceVersion": str(version), "creationTimestamp": None, **annotations}
        obj = {"kind": self._kind.title, "apiVersion": self._kind.api_version, "metadata": meta}
        if self._as_table:
            obj = table(self._kind, [], str(version))
        return json.dumps({"type": "BOOKMARK", "object": obj}).encode() + b"\n"

    def now(self) -> list[bytes]:
        """Everything there is, as if it were new."""
        listed = self._store.all(self._kind.id, self._namespace or None)
        return [self.line("ADDED", obj) for obj in listed if self._matches(obj)]

    def since(self, version: int) -> list[bytes]:
        told = (self._tell(change) for change in self._store.changes_after(version))
        return [line for line in told if line]

    def _tell(self, change: Change) -> bytes | None:
        """A change as this client sees it: what comes to match its selector is new, what no longer does is gone."""
        if change.key.kind != self._kind.id or self._namespace not in ("", change.key.namespace):
            return None
        before = change.before is not None and self._matches(change.before)
        after = not change.deleted and self._matches(change.object)
        if not before and not after:
            return None
        return self.line("DELETED" if not after else "MODIFIED" if before else "ADDED", change.object)


async def watch(request: web.Request, store: Store, kind: Kind, namespace: str) -> web.StreamResponse:
    """Changes from a resourceVersion on (none or 0: everything there is first), until the timeout or the client goes.

    A version that is too old is answered with an ERROR event of code 410, as a real API server does.
    """
    query = request.query
    try:
        last = int(query.get("resourceVersion") or 0)
        until = monotonic() + float(query.get("timeoutSeconds") or DEFAULT_TIMEOUT)
    except ValueError as error:
        raise errors.bad_request(f"resourceVersion and timeoutSeconds are numbers: {error}") from error
    seen = _Watch(request, store, kind, namespace)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        if last and store.too_old(last):
            text = f"too old resource version: {last} ({store.version})"
            await response.write(seen.line("ERROR", errors.ApiError(410, "Expired", text).body()))
            return response
        initial = query.get("sendInitialEvents", "").lower() == "true"
        if not last or initial:
            last = store.version
            for line in seen.now():
                await response.write(line)
            if initial:
                await response.write(seen.bookmark(last, initial=True))
        while (left := until - monotonic()) > 0:
            tick, version = store.tick, store.version
            for line in seen.since(last):
                await response.write(line)
            last = version
            try:
                async with asyncio.timeout(min(left, BOOKMARK_EVERY)):
                    await tick.wait()
            except TimeoutError:
                if query.get("allowWatchBookmarks", "").lower() == "true":
                    await response.write(seen.bookmark(last))
    except (ClientConnectionResetError, ConnectionResetError):
        pass  # the client has seen enough
    return response


async def log(request: web.Request, workloads: Workloads, pod: Manifest) -> web.StreamResponse:
    """A pod's log: all of it or the last `tailLines`, and with `follow` what is written from then on."""
    query = request.query
    container = query.get("container") or MAIN
    if container not in (MAIN, INIT):
        name = pod["metadata"]["name"]
        raise errors.bad_request(f"container {container} is not valid for pod {name}")
    key = RevisionKey(pod["metadata"]["namespace"], runner(pod))
    try:
        tail = int(query["tailLines"]) if "tailLines" in query else None
    except ValueError as error:
        raise errors.bad_request(f"tailLines is a number: {error}") from error
    whole = workloads.log(key)
    first = whole if tail is None else workloads.log(key, tail)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    try:
        await response.write(first.encode())
        while query.get("follow", "").lower() in ("true", "1"):
            await asyncio.sleep(LOG_POLL)
            grown = workloads.log(key)
            new = grown.removeprefix(whole) if len(grown) >= len(whole) else grown
            whole = grown
            if new:
                await response.write(new.encode())
    except (ClientConnectionResetError, ConnectionResetError):
        pass  # the reader has left
    return response
