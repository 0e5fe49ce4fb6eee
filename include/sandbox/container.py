"""What a revision's life knows of the program in its container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from sandbox.process import Child

#: Where KServe's storage initializer puts a version.
MODEL_MOUNT = "/mnt/models"


class ContainerFailed(Exception):
    """The container ends with code 1 before a server runs, as its entrypoint does on KServe."""


@dataclass(frozen=True)
class Container:
    """One container: the version is below `model`, `folder` is its own, `sockets` a short path."""

    name: str
    state_dir: Path
    model: Path
    folder: Path
    sockets: Path
    log: Path
    env: Mapping[str, str]

    def process(self, argv: list[str | Path], env: Mapping[str, str]) -> Child:
        """The process in it, which is yet to be started."""
        return Child(self.name, argv, state_dir=self.state_dir, log=self.log, env=env, cwd=self.folder)


class Server(Protocol):
    """One server as one replica of a revision. Making it raises ContainerFailed if the version's files are such that
    the container would end before serving.

    Attributes:
        child: its process.
        inference_port, metrics_port: on loopback.
        DIED: what its log says when the model did not load and it goes on without; None where it ends then.
    """

    child: Child
    inference_port: int
    metrics_port: int
    DIED: str | None

    def __init__(self, container: Container) -> None: ...

    async def loaded(self, http: aiohttp.ClientSession) -> bool:
        """Whether each model answers."""

    async def stop(self) -> None:
        """Ends the server, gives its ports back, and removes what it unpacked."""
