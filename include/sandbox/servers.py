"""Which program a container's image starts."""

from __future__ import annotations

from sandbox.container import Server
from sandbox.kserve_server import KServeServer
from sandbox.torchserve import TorchServe


def server_of(image: str) -> type[Server]:
    """What the container of this image runs: TorchServe, but for the image of KServe's own server."""
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return KServeServer if name == "model-release-serving-kserve" else TorchServe
