"""KServe's own model server as one replica of a revision: the program of its image, in its environment, on loopback."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from urllib.parse import quote

import aiohttp

from sandbox import programs
from sandbox.container import MODEL_MOUNT, Container, ContainerFailed
from sandbox.errors import SandboxError
from sandbox.ports import LOOPBACK, free_port, give_back

SERVER = Path(__file__).resolve().parents[1] / "images" / "serving-kserve" / "server.py"


class KServeServer:
    """`container.Server`. It ends by itself, with one line, when the model does not load."""

    DIED: str | None = None

    def __init__(self, container: Container) -> None:
        self._service = _service(container.model)
        try:
            python = programs.kserve_python()
        except SandboxError as error:
            raise ContainerFailed(str(error)) from None
        self._ports = [free_port() for _ in range(2)]
        self.inference_port, self.metrics_port = self._ports
        self._sockets = container.sockets
        for one in (container.folder, container.sockets):
            one.mkdir(parents=True, exist_ok=True)
        ports = ["--http_port", str(self.inference_port), "--metrics_port", str(self.metrics_port)]
        argv: list[str | Path] = [
            python,
            "-I",
            SERVER,
            "--model_dir",
            container.model.resolve(),
            "--host",
            LOOPBACK,
            *ports,
        ]
        self.child = container.process(
            argv, {"OMP_NUM_THREADS": "1", **container.env, "TMPDIR": str(container.sockets)}
        )

    async def loaded(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"http://{LOOPBACK}:{self.inference_port}/v1/models/{quote(self._service)}") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def stop(self) -> None:
        await self.child.stop()
        give_back(self._ports)
        await asyncio.to_thread(shutil.rmtree, self._sockets, ignore_errors=True)


def _service(model: Path) -> str:
    """The name it will serve. What else is wrong with a version the server says by itself, where it is started."""
    try:
        return str(json.loads((model / "config" / "serving.json").read_text(encoding="utf-8"))["service"])
    except (OSError, ValueError, KeyError, TypeError):
        other = " (the version is one for runtime torchserve)" if (model / "config/config.properties").exists() else ""
        raise ContainerFailed(f"{MODEL_MOUNT}/config/serving.json names no service{other}") from None
