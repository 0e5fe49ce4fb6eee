"""All parts of the sandbox together: started in parallel, watched, started again when one ends, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sandbox import status
from sandbox.airflow import Airflow
from sandbox.connections import connections
from sandbox.envoy import Envoy
from sandbox.errors import SandboxError
from sandbox.kube import Cluster, PortTaken, Timing
from sandbox.ports import LOOPBACK, Ports, replace
from sandbox.postgres import Postgres
from sandbox.process import PATIENCE, Child, end, processes, short_folder
from sandbox.prometheus import Prometheus
from sandbox.revision import Pace
from sandbox.s3 import ModelStore
from sandbox.wishes import Wishes
from sandbox.workloads import ProcessWorkloads

_log = logging.getLogger(__name__)

BUCKET = "models"
CONNECTIONS = "connections.json"


class Part(Protocol):
    """A program that the supervisor keeps running."""

    @property
    def child(self) -> Child: ...

    @property
    def url(self) -> str: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class LoadProcess:
    """The load generator as a part: a process of its own, so that it does not slow down who supervises it."""

    def __init__(self, state_dir: Path, front_door: str) -> None:
        self.url = front_door
        self._summary = state_dir / "load.json"
        argv: list[str | Path] = [sys.executable, "-m", "sandbox.load", state_dir, front_door]
        env = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
        self.child = Child("load", argv, state_dir=state_dir, log=state_dir / "logs/load.log", env=env)

    async def start(self) -> None:
        self._summary.unlink(missing_ok=True)
        await self.child.start()

    async def stop(self) -> None:
        await self.child.stop()


class GuardProcess:
    """The guard as a part, beside Airflow: it closes an open canary that Airflow looks at no more."""

    def __init__(self, state_dir: Path, project: Path, kubeconfig: Path, api_url: str) -> None:
        self.url = api_url
        argv: list[str | Path] = [sys.executable, "-m", "model_release", "guard", "--kubeconfig", kubeconfig]
        argv += ["--namespace", "models"]
        env = {"PYTHONPATH": str(project / "plugins"), "OMP_NUM_THREADS": "1"}
        self.child = Child("guard", argv, state_dir=state_dir, log=state_dir / "logs/guard.log", env=env)

    async def start(self) -> None:
        await self.child.start()

    async def stop(self) -> None:
        await self.child.stop()


class HubProcess:
    """A Hugging Face hub as a part. It runs when its folder is there; `make walkthrough` puts three models into it."""

    def __init__(self, state_dir: Path, ports: Ports) -> None:
        self._folder = state_dir / "hub"
        self._port = ports.of("hub")
        argv: list[str | Path] = [sys.executable, "-m", "sandbox.hub", self._folder, "--port", str(self._port)]
        env = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self.child = Child("hub", argv, state_dir=state_dir, log=state_dir / "logs/hub.log", env=env)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def wanted(self) -> bool:
        return self._folder.is_dir()

    async def start(self) -> None:
        """Starts the hub; returns when it takes connections."""
        await self.child.start()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, self._port)
            except OSError:
                if not self.child.running or time.monotonic() > deadline:
                    raise SandboxError(f"hub does not start: {self.child.tail(2)}") from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        await self.child.stop()


class Stack:
    """One sandbox. `start`, then `watch` until cancelled, then `stop`.

    Everything it keeps is below `state_dir`. With `project`, Airflow runs that folder's DAGs beside it. `say` gets
    a line for each part that becomes ready.
    Raises SandboxError, one line, for a missing part, a taken port, a program that does not start.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        wanted_ports: Mapping[str, int] | None = None,
        project: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
        pace: Pace | None = None,
    ) -> None:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state_dir = state_dir = state_dir.resolve()
        self._say = say
        # A supervisor that was killed may have left processes, which hold the ports, and a status of its own.
        end(processes(state_dir))
        (state_dir / status.FILE).unlink(missing_ok=True)
        Wishes().write(state_dir)
        ports = Ports(state_dir / "ports.json", wanted_ports)
        self._envoy = Envoy(state_dir, ports)
        self._prometheus = Prometheus(state_dir, ports)
        _ = self._prometheus.child  # its program is found, or fetched, before anything starts
        self._store = ModelStore(state_dir, ports)
        self._load = LoadProcess(state_dir, self._envoy.url)
        self._hub = HubProcess(state_dir, ports)
        self._api_port = ports.of("kubernetes")
        self._workloads = ProcessWorkloads(
            state_dir=state_dir, store=self._store.client, changed=self._publish, pace=pace
        )
        self._cluster = Cluster(
            workloads=self._workloads,
            router=self._envoy,
            state_dir=state_dir,
            port=self._api_port,
            front_door_port=ports.of("front-door"),
            # A laptop's memory: each revision that waits without traffic for a late roll-back is another TorchServe.
            timing=Timing(reserve_grace=20.0),
        )
        # What Airflow is told, by environment variable; the file is for who brings an Airflow of their own.
        self.connections = connections(
            kubeconfig=self._cluster.kubeconfig,
            store=self._store,
            prometheus=self._prometheus.url,
            front_door=self._envoy.url,
        )
        replace(state_dir / CONNECTIONS, json.dumps(self.connections, indent=1), mode=0o600)
        self._postgres = self._database() if project else None
        database = self._postgres.sqlalchemy_url if self._postgres else ""
        self._airflow = Airflow(state_dir, ports, project, self.connections, database) if project else None
        self._guard = (
            GuardProcess(state_dir, project.resolve(), self._cluster.kubeconfig, self.api_url) if project else None
        )
        ports.check()
        self.parts: dict[str, Part] = {
            "envoy": self._envoy,
            "prometheus": self._prometheus,
            "s3": self._store,
        }
        if self._postgres:
            self.parts["postgres"] = self._postgres
        if self._airflow:
            self.parts["airflow"] = self._airflow
        if self._guard:
            self.parts["guard"] = self._guard
        self._retry_at: dict[str, tuple[float, float]] = {}
        self._ready = False

    async def start(self) -> None:
        """Starts all parts, side by side, and returns when each answers. On failure everything is stopped again."""
        names = [*self.parts, "kubernetes", *(["hub"] if self._hub.wanted else [])]
        self._say(f"{status.STARTING}{', '.join(sorted(names))}")
        starting = [self._timed("prometheus", self._prometheus), self._start_cluster(), self._start_airflow()]
        if self._hub.wanted:
            starting.append(self._timed("hub", self._hub))
        tasks = [asyncio.create_task(one) for one in starting]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stop()
            raise
        self._ready = True
        self._write_status()

    async def watch(self) -> None:
        """Follows the wishes file and starts again what ended by itself, with growing pauses. Never returns."""
        while True:
            wishes = Wishes.read(self._state_dir)
            for name, part in self._all_parts().items():
                wanted = self._is_wanted(name, wishes)
                if part.child.running and not wanted:
                    await part.stop()
                elif wanted and not part.child.running:
                    await self._revive(name, part)
            self._write_status()
            await asyncio.sleep(0.3)

    async def stop(self) -> None:
        """Stops everything and returns when no process is left. What the state folder holds stays there."""
        self._ready = False
        self._write_status()
        ends = [part.stop() for name, part in self._all_parts().items() if name not in ("airflow", "postgres")]
        ends.append(self._stop_airflow())
        await asyncio.gather(self._cluster.stop(), self._workloads.stop(), *ends, return_exceptions=True)
        await asyncio.to_thread(end, processes(self._state_dir))
        await asyncio.to_thread(shutil.rmtree, short_folder(self._state_dir), ignore_errors=True)
        (self._state_dir / status.FILE).unlink(missing_ok=True)

    async def _start_airflow(self) -> None:
        if self._postgres:
            await self._timed("postgres", self._postgres)
        if self._airflow:
            await self._timed("airflow", self._airflow)

    async def _stop_airflow(self) -> None:
        """Airflow before its database, so that it can say how far it came."""
        for part in (self._airflow, self._postgres):
            if part:
                await part.stop()

    def _database(self) -> Postgres | None:
        try:
            return Postgres(self._state_dir)
        except SandboxError as error:
            self._say(f"Airflow keeps what it knows in SQLite, and refuses backfills: {error}")
            return None

    def _all_parts(self) -> dict[str, Part]:
        return {**self.parts, "hub": self._hub, "load": self._load}

    def _is_wanted(self, name: str, wishes: Wishes) -> bool:
        if name == "load":
            return wishes.load is not None
        return name not in wishes.stopped and (name != "hub" or self._hub.wanted)

    async def _start_cluster(self) -> None:
        """The cluster brings its revisions back at once, so the store and the front door come before it."""

        async def store() -> None:
            await self._timed("s3", self._store)
            await self._store.ensure_bucket(BUCKET)

        await asyncio.gather(store(), self._timed("envoy", self._envoy), self._workloads.start())
        began = time.monotonic()
        try:
            await self._cluster.start()
        except PortTaken as error:
            raise SandboxError(str(error)) from error
        self._say(_ready_line("kubernetes", began, self.api_url))
        if self._guard:
            await self._timed("guard", self._guard)

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self._api_port}"

    async def _timed(self, name: str, part: Part) -> None:
        began = time.monotonic()
        await part.start()
        self._say(_ready_line(name, began, part.url))

    async def _publish(self) -> None:
        self._prometheus.scrape(self._workloads.targets())
        await self._envoy.place(self._workloads.backends())

    async def _revive(self, name: str, part: Part) -> None:
        due, pause = self._retry_at.get(name, (0.0, 1.0))
        now = time.monotonic()
        if now < due:
            return
        # Half a minute after the last attempt the part counts as one that ran well.
        pause = 1.0 if now > due + 30 else min(pause * 2, 30.0)
        self._retry_at[name] = (now + pause, pause)
        if part.child.exit_code not in (None, 0):
            self._say(f"{name} ended with code {part.child.exit_code}; it is started again")
        try:
            await self._timed(name, part)
        except SandboxError as error:
            _log.error("%s: next attempt in %.0f s", error, pause)
            self._say(str(error))

    def _write_status(self) -> None:
        parts = {"kubernetes": {"running": self._ready, "url": self.api_url, "pid": os.getpid()}}
        for name, part in self._all_parts().items():
            running = part.child.running
            parts[name] = {"running": running, "url": part.url, "pid": part.child.pid if running else None}
        state = {"pid": os.getpid(), "ready": self._ready, "parts": parts}
        with contextlib.suppress(FileNotFoundError):  # somebody removed the state folder
            replace(self._state_dir / status.FILE, json.dumps(state))


def _ready_line(name: str, began: float, url: str) -> str:
    return f"  {name:<11} ready after {time.monotonic() - began:4.1f} s   {url}"
