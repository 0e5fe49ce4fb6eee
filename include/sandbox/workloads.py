"""The sandbox's kubelet: runs revisions as processes and tells the rest where they are."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

from sandbox.envoy import Backend
from sandbox.errors import SandboxError
from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate
from sandbox.ports import LOOPBACK, free_port, give_back
from sandbox.process import processes, short_folder
from sandbox.prometheus import Target
from sandbox.revision import Pace, Revision, Surroundings

_log = logging.getLogger(__name__)


class ProcessWorkloads:
    """Runs revisions; implements `interfaces.Workloads`.

    `store` makes an S3 client. `changed` is awaited whenever `backends` or `targets` may say something new, and
    before a replica is reported ready: what is ready can be reached. A model that does not load is ready all the
    same and answers 503, because on KServe readiness is a TCP connect to the wrapper
    (docs/facts.md#ready-does-not-mean-loaded).
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        store: Callable[[], Any],
        changed: Callable[[], Awaitable[None]],
        pace: Pace | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._store = store
        self._changed = changed
        self._pace = pace or Pace()
        self._revisions: dict[RevisionKey, Revision] = {}
        self._unready_port = free_port()
        self._unready: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", _not_ready)
        self._unready = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._unready.setup()
        await web.TCPSite(self._unready, LOOPBACK, self._unready_port).start()
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2))

    async def stop(self) -> None:
        """Ends all revisions at once."""
        revisions, self._revisions = self._revisions, {}
        await asyncio.gather(*(revision.stop() for revision in revisions.values()))
        if self._http:
            await self._http.close()
        if self._unready:
            await self._unready.cleanup()
        give_back([self._unready_port])

    async def ensure(self, template: RevisionTemplate) -> None:
        """Makes the revision run as the template says, without waiting for it: `state` tells how far it is.

        Other replicas or limits change the running revision; another storage URI or environment starts it anew.
        """
        present = self._revisions.get(template.key)
        if present and present.template == template:
            return
        if present and present.fits(template):
            await present.adopt(template)
            return
        if present:
            await present.stop()
        self._revisions[template.key] = Revision(template, self._around(template.key))

    async def remove(self, key: RevisionKey) -> None:
        """Ends the revision and forgets it with its logs. One that is not there is no error."""
        revision = self._revisions.pop(key, None)
        if revision is None:
            return
        await self._publish()
        if revision.replicas:
            await asyncio.sleep(self._pace.drain)
        await revision.stop()
        await asyncio.to_thread(shutil.rmtree, self._around(key).folder, ignore_errors=True)

    def state(self, key: RevisionKey) -> PodState:
        revision = self._revisions.get(key)
        return revision.state() if revision else PodState(Phase.PENDING)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        """What the revision's containers wrote, or the last `tail` lines of it; empty for an unknown revision."""
        revision = self._revisions.get(key)
        return revision.log(tail) if revision else ""

    def kill(self, key: RevisionKey) -> None:
        """kill -9 of the revision's servers; they are started again as after any crash."""
        for victim in processes(self._state_dir, f"{key.namespace}/{key.name}"):
            with contextlib.suppress(psutil.Error):
                victim.kill()

    def backends(self) -> dict[RevisionKey, Backend]:
        """Where each revision's requests go now."""
        return {
            key: Backend(
                tuple(replica.serving_port for replica in revision.replicas if replica.serving_port),
                revision.template.container_concurrency,
                revision.template.timeout_seconds,
            )
            for key, revision in self._revisions.items()
        }

    def targets(self) -> list[Target]:
        """The metrics page of each replica that has one."""
        return [
            Target(key, replica.pod, replica.metrics_port)
            for key, revision in self._revisions.items()
            for replica in revision.replicas
            if replica.metrics_port
        ]

    def _around(self, key: RevisionKey) -> Surroundings:
        if self._http is None:
            raise SandboxError("the workloads are not started")
        return Surroundings(
            state_dir=self._state_dir,
            folder=self._state_dir / "revisions" / key.namespace / key.name,
            sockets=short_folder(self._state_dir) / hashlib.sha256(str(key).encode()).hexdigest()[:8],
            store=self._store,
            publish=self._publish,
            unready_port=self._unready_port,
            http=self._http,
            pace=self._pace,
        )

    async def _publish(self) -> None:
        try:
            await self._changed()
        except SandboxError as error:
            # The supervisor starts a front door that ended again, and it starts with what holds by then.
            _log.warning("the front door does not know the newest revisions: %s", error)


async def _not_ready(request: web.Request) -> web.Response:
    """What KServe's wrapper answers for a model that did not load."""
    name = request.path.rsplit("/", 1)[-1].split(":", 1)[0]
    return web.json_response({"error": f"Model with name {name} is not ready."}, status=503)
