"""A cluster's stand-in as one object: the API on a loopback port, and the controllers behind it."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import yaml
from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import ValidationError

from sandbox.interfaces import Manifest, Router, Workloads
from sandbox.kube import admission, seed
from sandbox.kube.api import Api
from sandbox.kube.controller import Controller, Timing
from sandbox.kube.errors import ApiError, bad_request
from sandbox.kube.faults import Fault, Faults
from sandbox.kube.harmed import Harmed
from sandbox.kube.registry import Registry
from sandbox.kube.resources import INFERENCE_SERVICES, LEASES
from sandbox.kube.store import Store

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
STORE = "kube.sqlite"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PortTaken(OSError):
    """The port of the API is in use by another process."""


def forget(state_dir: Path, namespace: str, service: str, lease: str) -> None:
    """Deletes an InferenceService, and the lease of its releases, from a cluster that does not run: the next start
    brings no revision of it back. What is not there is no error."""
    if not (file := state_dir / STORE).exists():
        return
    store = Store(file)
    try:
        for kind, name in ((INFERENCE_SERVICES, service), (LEASES, lease)):
            with suppress(ApiError):
                Registry(store).delete(kind, namespace, name)
    finally:
        store.close()


class Cluster:
    """The Kubernetes API with KServe's and Knative's controllers, over whoever runs processes and splits traffic.

    Args:
        workloads, router: who runs revisions and who splits traffic (sandbox.interfaces).
        state_dir: keeps `kube.sqlite` and the kubeconfig; the same folder again finds the same objects.
        port: of the API on loopback; 0 takes a free one (`self.port` after `start`).
        front_door_port: the port in every URL that statuses tell; None leaves it out.
        namespaces: created when missing, besides default, kube-system, kserve and knative-serving.
        known_as: host names besides this machine's own under which requests are answered.
        kserve: the release to act as, 0.18 to 0.21. They differ in Standard mode alone (docs/facts.md#standard-mode).

    `start` and `stop` may be repeated. `stop` ends the API and the controllers; revisions that run are left to
    their owner, and a later `start` asks for them again.
    """

    def __init__(
        self, workloads: Workloads, router: Router, state_dir: Path, port: int = 0,
        front_door_port: int | None = None, *, domain: str = "localhost",
        namespaces: tuple[str, ...] = ("models",), timing: Timing | None = None, known_as: tuple[str, ...] = (),
        kserve: str = "0.21",
    ) -> None:  # fmt: skip
        self.faults = Faults()
        self._workloads, self._router, self._state_dir = Harmed(workloads, self.faults), router, state_dir
        self.port, self._namespaces, self._timing = port, namespaces, timing or Timing()
        self._domain = f"{domain}:{front_door_port}" if front_door_port else domain
        self._hosts, self._kserve = (*_LOOPBACK, *known_as), kserve
        self._store: Store | None = None
        self._runner: web.AppRunner | None = None
        self._controller: Controller | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """The file for `kubectl --kubeconfig` and the Python clients; written by `start`, without secrets."""
        return self._state_dir / "kubeconfig.yaml"

    async def start(self) -> None:
        """Open the store, listen, and let the controllers run. Raises PortTaken with what to do."""
        if self._runner is not None:
            return
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._store = Store(self._state_dir / STORE)
        registry = Registry(self._store)

        def cluster_default() -> str:
            return seed.cluster_default_mode(registry)

        def admit(new: Manifest, old: Manifest | None) -> Manifest:
            return admission.admit(new, old, cluster_default(), self._kserve)

        registry.admission[INFERENCE_SERVICES.id] = admit
        seed.plant(registry, self._domain, self._namespaces)
        # Without a line for each request: who starts the sandbox is shown what its log says.
        self._runner = web.AppRunner(
            self._application(registry), access_log=None, handle_signals=False, shutdown_timeout=0.5
        )
        await self._runner.setup()
        try:
            await self._listen(self._runner)
        except PortTaken:
            await self.stop()
            raise
        self._write_kubeconfig()
        self._controller = Controller(
            registry, self._workloads, self._router, self._domain, self._timing, cluster_default,
            self.faults, self._kserve,
        )  # fmt: skip
        self._loop = asyncio.create_task(self._controller.run(), name="sandbox-kube-controllers")

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, HOST, self.port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            text = f"port {self.port} on {HOST} is taken by another program: end it, or choose another port"
            raise PortTaken(error.errno, text) from error
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        if self._controller is not None:
            await self._controller.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._store is not None:
            self._store.close()
        self._loop = self._controller = self._runner = self._store = None

    def _application(self, registry: Registry) -> web.Application:
        app = web.Application(middlewares=[_only_hosts(self._hosts), _statuses], client_max_size=16 << 20)
        app.add_routes(
            [
                web.get("/-/faults", self._show_faults),
                web.post("/-/faults", self._add_fault),
                web.delete("/-/faults", self._clear_faults),
                web.get("/-/calls", self._show_calls),
                *Api(registry, self._workloads, self.faults).routes(),
            ]
        )
        return app

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response([fault.model_dump() for fault in self.faults.active])

    async def _add_fault(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise bad_request("a fault is sent as application/json")
        try:
            fault = Fault.model_validate_json(await request.text())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise bad_request(f"not a fault: {where}: {first['msg']}") from error
        self.faults.active.append(fault)
        return web.json_response(fault.model_dump(), status=201)

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self.faults.active.clear()
        return web.json_response([])

    async def _show_calls(self, _: web.Request) -> web.Response:
        return web.json_response(self.faults.calls())

    def _write_kubeconfig(self) -> None:
        named = {
            "cluster": "sandbox",
            "user": "sandbox",
            "namespace": self._namespaces[0] if self._namespaces else "default",
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sandbox", "cluster": {"server": self.url}}],
            "users": [{"name": "sandbox", "user": {}}],
            "contexts": [{"name": "sandbox", "context": named}],
            "current-context": "sandbox",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config, sort_keys=False))


def _only_hosts(hosts: tuple[str, ...]) -> Middleware:
    """Refuse what a web page could send here by way of a name that resolves to this machine."""

    @web.middleware
    async def only_hosts(request: web.Request, handler: _Handler) -> web.StreamResponse:
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if host not in hosts:
            return web.json_response(ApiError(403, "Forbidden", f"host {host} is not this machine").body(), status=403)
        return await handler(request)

    return only_hosts


@web.middleware
async def _statuses(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Refusals and crashes as Status bodies."""
    try:
        return await handler(request)
    except ApiError as error:
        headers = {"Retry-After": "1"} if error.code in (429, 503) else None
        return web.json_response(error.body(), status=error.code, headers=headers)
    except web.HTTPException:
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        body = ApiError(500, "InternalError", "Internal error occurred: see the sandbox's log").body()
        return web.json_response(body, status=500)
