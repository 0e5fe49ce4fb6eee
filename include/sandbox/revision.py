"""The life of one revision: download its version, run its replicas, start them again when they crash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sandbox.container import Container, ContainerFailed, Server
from sandbox.interfaces import Phase, PodState, RevisionTemplate
from sandbox.process import tail
from sandbox.servers import server_of
from sandbox.storage import DownloadFailed, download

VERIFY = Path(__file__).resolve().parents[1] / "manifests" / "verify" / "verify_version.py"

# Lines of a failed container's log that its pod's status repeats.
_MESSAGE_LINES = 10
# A container that ran this long, in seconds, crashed anew and not again: its back-off starts from the beginning.
_RAN_WELL = 60.0


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds: shorter than on a cluster, so that a failure shows while one looks on.

    KServe's wrapper waits `load_tries` times `load_delay` for the model (10 x 30 s there; MODEL_LOAD_MAX_TRY and
    MODEL_LOAD_DELAY in the revision's environment win). Here it also gives up once TorchServe's worker has died
    `worker_deaths` times. The kubelet's back-off there starts with 10 and ends at 300.
    """

    load_tries: int = 10
    load_delay: float = 6.0
    worker_deaths: int = 2
    first_backoff: float = 2.0
    longest_backoff: float = 60.0
    # Between "no new requests" and the end of a process: requests in work get their answer.
    drain: float = 0.5

    def backoff(self, failures: int) -> float:
        """Seconds before the next start after so many failures in a row."""
        return float(min(self.first_backoff * 2 ** (failures - 1), self.longest_backoff))


@dataclass(frozen=True)
class Surroundings:
    """What a revision needs of the sandbox."""

    state_dir: Path
    folder: Path  # the revision's own: logs, configuration, model files
    sockets: Path  # the same with a short path
    store: Callable[[], Any]  # makes an S3 client
    publish: Callable[[], Awaitable[None]]  # programs the front door; awaited before anything is called ready
    unready_port: int  # answers 503, as KServe's wrapper does when its model did not load
    http: aiohttp.ClientSession
    pace: Pace


class Replica:
    """One pod. `serving_port` is where its requests go, None as long as it takes none."""

    def __init__(self, pod: str, template: RevisionTemplate, around: Surroundings) -> None:
        self.pod = pod
        self.phase = Phase.STARTING
        self.message = ""
        self.exit_code: int | None = None
        self.serving_port: int | None = None
        self.metrics_port: int | None = None
        self._template, self._around = template, around
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends the server and its supervision."""
        await _cancelled(self._task)

    async def _run(self) -> None:
        failures = 0
        while True:
            self.phase = Phase.STARTING
            began = time.monotonic()
            try:
                self.exit_code, self.message = await self._serve()
            except ContainerFailed as failure:
                self.exit_code, self.message = 1, str(failure)
                with self._log.open("a") as log:
                    log.write(f"{failure}\n")
            self.phase = Phase.CRASHED
            await self._around.publish()
            failures = 1 if time.monotonic() - began > _RAN_WELL else failures + 1
            await asyncio.sleep(self._around.pace.backoff(failures))

    async def _serve(self) -> tuple[int, str]:
        """Runs one server until it ends; its exit code and last words."""
        await self._verify()
        around, key = self._around, self._template.key
        index = self.pod.rsplit("-", 1)[-1]
        container = Container(
            f"{key.namespace}/{key.name}/{index}",
            state_dir=around.state_dir,
            model=around.folder / "model",
            folder=around.folder / index,
            sockets=around.sockets / index,
            log=self._log,
            env=self._template.env,
        )
        server = server_of(self._template.image)(container)
        exited = None
        try:
            await server.child.start()
            exited = asyncio.create_task(server.child.wait())
            loaded = await self._until_loaded(server, exited)
            if not exited.done():
                self.serving_port = server.inference_port if loaded else around.unready_port
                self.metrics_port = server.metrics_port if loaded else None
                await around.publish()
                self.phase, self.message, self.exit_code = Phase.READY, "", None
            return await exited, tail(self._log, _MESSAGE_LINES)
        finally:
            self.serving_port = self.metrics_port = None
            if exited:
                await _cancelled(exited)
            await server.stop()

    async def _verify(self) -> None:
        """The container's first step, as in include/manifests/serving_runtime.yaml, by the same program."""
        program = [sys.executable, "-I", str(VERIFY), str(self._around.folder / "model")]
        with self._log.open("a") as log:
            child = await asyncio.create_subprocess_exec(*program, stdout=log, stderr=asyncio.subprocess.PIPE)
            _, said = await child.communicate()
        if child.returncode:
            raise ContainerFailed(said.decode(errors="replace").strip())

    async def _until_loaded(self, server: Server, exited: asyncio.Task[int]) -> bool:
        env, pace = self._template.env, self._around.pace
        tries = int(env.get("MODEL_LOAD_MAX_TRY", pace.load_tries))
        deadline = time.monotonic() + tries * float(env.get("MODEL_LOAD_DELAY", pace.load_delay))
        # Only KServe's wrapper opens its port for a model that did not load. Others end, or are waited for.
        died = server.DIED
        deaths = tail(self._log, None).count(died) + pace.worker_deaths if died else 0
        while not exited.done() and (died is None or time.monotonic() < deadline):
            if await server.loaded(self._around.http):
                return True
            if died and tail(self._log, None).count(died) >= deaths:
                return False
            await asyncio.sleep(0.1)
        return False

    @property
    def _log(self) -> Path:
        return self._around.folder / f"{self.pod}.log"


class Revision:
    """Keeps a revision as its template says, from construction until `stop`."""

    def __init__(self, template: RevisionTemplate, around: Surroundings) -> None:
        self.template = template
        self.replicas: list[Replica] = []
        self._around = around
        self._phase = Phase.PENDING
        self._message = ""
        self._exit_code: int | None = None
        self._task = asyncio.create_task(self._bring_up())

    def fits(self, template: RevisionTemplate) -> bool:
        """Whether the containers would be the same; only their number and limits may differ."""
        own = self.template
        return (own.image, own.storage_uri, own.env, own.service) == (
            template.image,
            template.storage_uri,
            template.env,
            template.service,
        )

    async def adopt(self, template: RevisionTemplate) -> None:
        """Takes a template that `fits`: starts or ends replicas, and has the front door know the new limits."""
        self.template = template
        if self._task.done():
            await self._scale()
        await self._around.publish()

    async def stop(self) -> None:
        """Ends everything of this revision. Its logs stay until it is started anew."""
        await _cancelled(self._task)
        replicas, self.replicas = self.replicas, []
        await asyncio.gather(*(replica.stop() for replica in replicas))

    def state(self) -> PodState:
        """The phase of the best replica, as KServe counts: one that is ready makes the revision ready."""
        pods = tuple(self._pod_names())
        ready = sum(replica.phase is Phase.READY for replica in self.replicas)
        for phase in (Phase.READY, Phase.CRASHED, Phase.STARTING):
            for replica in self.replicas:
                if replica.phase is phase:
                    return PodState(phase, ready, replica.message, replica.exit_code, pods)
        return PodState(self._phase, 0, self._message, self._exit_code, pods)

    def log(self, lines: int | None = None) -> str:
        """What the containers wrote: the storage initializer, then one pod after another."""
        files = [self._initializer_log, *(self._around.folder / f"{pod}.log" for pod in self._pod_names())]
        text = "\n".join(part.rstrip("\n") for file in files if (part := tail(file, None)))
        return text if lines is None else "\n".join(text.splitlines()[-lines:] if lines > 0 else [])

    async def _bring_up(self) -> None:
        around, uri = self._around, self.template.storage_uri
        await asyncio.to_thread(shutil.rmtree, around.folder, ignore_errors=True)
        around.folder.mkdir(parents=True)
        self._phase = Phase.DOWNLOADING
        failures = 0
        while True:
            self._say(f"Copying contents of {uri} to local")
            try:
                count = await asyncio.to_thread(lambda: download(around.store(), uri, around.folder / "model"))
                break
            except (DownloadFailed, OSError) as failure:
                failures += 1
                self._say(str(failure))
                self._phase, self._message, self._exit_code = Phase.DOWNLOAD_FAILED, str(failure), 1
                await asyncio.sleep(around.pace.backoff(failures))
        self._say(f"Successfully copied {uri} to /mnt/models ({count} files)")
        self._phase, self._message, self._exit_code = Phase.PENDING, "", None
        await self._scale()

    async def _scale(self) -> None:
        names = self._pod_names()
        kept, surplus = self.replicas[: len(names)], self.replicas[len(names) :]
        self.replicas = kept + [Replica(pod, self.template, self._around) for pod in names[len(kept) :]]
        if surplus:
            await self._around.publish()
            await asyncio.sleep(self._around.pace.drain)
            await asyncio.gather(*(replica.stop() for replica in surplus))

    def _pod_names(self) -> list[str]:
        """As Kubernetes names them: `<deployment>-<template hash>-<pod>`; always the same for the same revision."""
        name = self.template.key.name
        digest = hashlib.sha256(name.encode()).hexdigest()
        return [f"{name}-deployment-{digest[:10]}-{digest[10:14]}{index}" for index in range(self.template.replicas)]

    def _say(self, line: str) -> None:
        with self._initializer_log.open("a") as log:
            log.write(f"{line}\n")

    @property
    def _initializer_log(self) -> Path:
        return self._around.folder / "storage-initializer.log"


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
