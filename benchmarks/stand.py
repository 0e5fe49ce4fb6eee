"""A store and a Kubernetes API with its controllers, for benchmarks of what reads them, in a process of their own: they
are Python, too, and in the reader's process they would share its interpreter."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sandbox.interfaces import Phase, PodState
from sandbox.kube.controller import Timing
from sandbox.kube.server import Cluster
from sandbox.ports import Ports
from sandbox.s3 import ModelStore


class Pods:
    """Revisions that are ready at once: what is measured is what reads of them."""

    async def ensure(self, template: Any) -> None: ...

    async def remove(self, key: Any) -> None: ...

    def state(self, key: Any) -> PodState:
        return PodState(Phase.READY, 1, pods=(f"{key.name}-deployment-0",))

    def log(self, key: Any, tail: int | None = None) -> str:
        return ""

    def kill(self, key: Any) -> None: ...

    async def program(self, routes: Any) -> None: ...


def _stand(folder: Path, namespaces: tuple[str, ...], timing: Timing, ends: Connection) -> None:
    """Both, in this process, until the other end of the pipe is closed."""

    async def main() -> None:
        s3, pods = ModelStore(folder, Ports(folder / "ports.json")), Pods()
        api = Cluster(pods, pods, folder / "kube", namespaces=namespaces, timing=timing)
        await s3.start()
        await s3.ensure_bucket("models")
        await api.start()
        ends.send(api.url)
        with suppress(EOFError):
            await asyncio.to_thread(ends.recv)
        await api.stop()
        await s3.stop()

    asyncio.run(main())


@contextmanager
def stand(folder: Path, namespaces: tuple[str, ...], timing: Timing | None = None) -> Iterator[tuple[ModelStore, str]]:
    """SeaweedFS, with the bucket `models`, and the address of the sandbox's API server."""
    near, far = multiprocessing.Pipe()
    given = (folder, namespaces, timing or Timing(), far)
    process = multiprocessing.get_context("spawn").Process(target=_stand, args=given)
    process.start()
    far.close()
    try:
        url = near.recv()
        yield ModelStore(folder, Ports(folder / "ports.json")), url
    finally:
        near.close()
        process.join(60)
