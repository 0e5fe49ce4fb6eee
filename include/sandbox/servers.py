"""Which program a container's image starts, and what a revision's life needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import aiohttp

from sandbox.process import Child

#: Where KServe's storage initializer puts a version.
MODEL_MOUNT = "/mnt/models"


class ContainerFailed(Exception):
    """The container ends with code 1 before a server runs, as its entrypoint does on KServe."""


class Server(Protocol):
    """One server as one replica of a revision.

    Attributes:
        child: its process.
        inference_port, metrics_port: on loopback.
        DIED: what its log says when the model did not load and it goes on without; None where it ends then.
    """

    child: Child
    inference_port: int
    metrics_port: int
    DIED: str | None

    async def loaded(self, http: aiohttp.ClientSession) -> bool:
        """Whether each model answers."""

    async def stop(self) -> None:
        """Ends the server, gives its ports back, and removes what it unpacked."""


class MakesServer(Protocol):
    """A server for the version below `model`; `folder` is its own, `sockets` a short path.

    Raises ContainerFailed if the version's files are such that the container would end before serving.
    """

    def __call__(
        self,
        name: str,
        *,
        state_dir: Path,
        model: Path,
        folder: Path,
        sockets: Path,
        log: Path,
        env: Mapping[str, str],
    ) -> Server: ...


def server_of(image: str) -> MakesServer:
    """What the container of this image runs: TorchServe, but for the image of KServe's own server."""
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if name == "model-release-serving-kserve":
        from sandbox.kserve_server import KServeServer

        return KServeServer
    from sandbox.torchserve import TorchServe

    return TorchServe
