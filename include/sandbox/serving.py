"""The cluster's stand-in alone, for a machine of its own: `python -m sandbox.serving`, for docker-compose.yaml.

The Kubernetes API, Envoy and a TorchServe for each revision, as in the whole sandbox; the S3 store is somebody else's,
and so is Prometheus, for which the configuration is written to `STATE/prometheus/`. All parts listen on loopback, as
ever; two doors let the other services of the network in: the Kubernetes API's and the front door's.

The store's address and credentials come from the environment: S3_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox.envoy import Envoy
from sandbox.errors import SandboxError
from sandbox.kube import Cluster, Timing
from sandbox.ports import LOOPBACK, Ports
from sandbox.process import end, processes
from sandbox.prometheus import Prometheus
from sandbox.s3 import REGION
from sandbox.stack import LoadProcess
from sandbox.wishes import Load, Wishes
from sandbox.workloads import ProcessWorkloads

_log = logging.getLogger("sandbox.serving")

NEEDED = ("S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class Serving:
    """One cluster's stand-in. `start`, then `watch` until cancelled, then `stop`; all may be repeated.

    Args:
        state_dir: keeps the objects of the Kubernetes API; the same folder again finds them.
        name: the host name under which the Kubernetes API is asked for, besides loopback.
        load: users for a service, from the start on.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        environment: Mapping[str, str],
        name: str,
        listen: str,
        api_port: int,
        front_door_port: int,
        load: Load | None = None,
    ) -> None:
        missing = [key for key in NEEDED if not environment.get(key)]
        if missing:
            raise SandboxError(f"{', '.join(missing)}: not set; they say where the store is and who may read it")
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        end(processes(state_dir))
        ports = Ports(state_dir / "ports.json")
        self._store = {key: environment[key] for key in NEEDED}
        self._envoy = Envoy(state_dir, ports)
        self._prometheus = Prometheus(state_dir, ports)
        self._workloads = ProcessWorkloads(state_dir=state_dir, store=self._s3, changed=self._publish)
        self._cluster = Cluster(
            workloads=self._workloads,
            router=self._envoy,
            state_dir=state_dir,
            port=ports.of("kubernetes"),
            front_door_port=front_door_port,
            timing=Timing(reserve_grace=20.0),
            known_as=(name,),
        )
        self._load = LoadProcess(state_dir, self._envoy.url)
        self._users = load is not None
        Wishes(load=load).write(state_dir)
        self._listen = listen
        self._inner = {api_port: ports.of("kubernetes"), front_door_port: ports.of("front-door")}
        self._doors: list[asyncio.Server] = []

    async def start(self) -> None:
        """Returns when the Kubernetes API answers; the doors open last. On failure everything is stopped again."""
        try:
            self._prometheus.configure()
            await asyncio.gather(self._envoy.start(), self._workloads.start())
            await self._cluster.start()
            for outer, inner in self._inner.items():
                self._doors.append(await asyncio.start_server(_to(inner), self._listen, outer))
        except BaseException:
            await self.stop()
            raise

    async def watch(self) -> None:
        """Starts Envoy and the load again when they end by themselves. Never returns."""
        wanted = (self._envoy, self._load) if self._users else (self._envoy,)
        while True:
            for part in wanted:
                if not part.child.running:
                    _log.info("starting %s", part.child.name)
                    await part.start()
            await asyncio.sleep(1)

    async def stop(self) -> None:
        """Stops everything; what the state folder holds stays there."""
        for door in self._doors:
            door.close()
        self._doors.clear()
        stops = (self._cluster.stop(), self._workloads.stop(), self._envoy.stop(), self._load.stop())
        await asyncio.gather(*stops, return_exceptions=True)

    async def _publish(self) -> None:
        self._prometheus.scrape(self._workloads.targets())
        await self._envoy.place(self._workloads.backends())

    def _s3(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self._store["S3_ENDPOINT"],
            aws_access_key_id=self._store["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self._store["AWS_SECRET_ACCESS_KEY"],
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, connect_timeout=5),
        )


def _to(port: int) -> Any:
    """What a door does with a visitor: passes bytes both ways until either side has said all."""

    async def pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(65536):
                target.write(chunk)
                await target.drain()
            target.write_eof()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError as error:
            _log.warning("nobody listens on %d: %s", port, error)
            writer.close()
            return
        await asyncio.gather(pour(reader, inner_writer), pour(inner_reader, writer))
        for side in (writer, inner_writer):
            side.close()

    return visit


async def _run(serving: Serving) -> int:
    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    await serving.start()
    _log.info("ready")
    watching = asyncio.create_task(serving.watch())
    await asyncio.wait([watching, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([watching])
    await serving.stop()
    if not watching.cancelled() and (error := watching.exception()):
        raise SandboxError(f"the supervisor failed: {error!r}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM; 1 with one line on stderr where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.serving", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="the state folder")
    parser.add_argument("--name", default="sandbox", help="this machine's name in the network")
    parser.add_argument("--listen", default="0.0.0.0", help="the address of the doors")
    parser.add_argument("--api-port", type=int, default=6443)
    parser.add_argument("--front-door-port", type=int, default=8081)
    parser.add_argument("--load", metavar="NAMESPACE/NAME", help="users for this service")
    parser.add_argument("--rate", type=float, default=20.0, help="their requests a second")
    options = parser.parse_args(argv)
    try:
        serving = Serving(
            options.state.resolve(),
            environment=os.environ,
            name=options.name,
            listen=options.listen,
            api_port=options.api_port,
            front_door_port=options.front_door_port,
            load=Load(options.load, options.rate) if options.load else None,
        )
        return asyncio.run(_run(serving))
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main())
