"""KServe's own model server as one replica of a revision: the program of its image, in its environment, on loopback."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import aiohttp

from sandbox import programs
from sandbox.errors import SandboxError
from sandbox.ports import LOOPBACK, free_port, give_back
from sandbox.process import Child
from sandbox.servers import MODEL_MOUNT, ContainerFailed

SERVER = Path(__file__).resolve().parents[1] / "images" / "serving-kserve" / "server.py"


class KServeServer:
    """`servers.Server`. It ends by itself, with one line, when the model does not load."""

    DIED: str | None = None

    def __init__(
        self,
        name: str,
        *,
        state_dir: Path,
        model: Path,
        folder: Path,
        sockets: Path,
        log: Path,
        env: Mapping[str, str],
    ) -> None:
        self._service = _service(model)
        try:
            python = programs.kserve_python()
        except SandboxError as error:
            raise ContainerFailed(str(error)) from None
        self._ports = [free_port() for _ in range(2)]
        self.inference_port, self.metrics_port = self._ports
        self._sockets = sockets
        for one in (folder, sockets):
            one.mkdir(parents=True, exist_ok=True)
        ports = ["--http_port", str(self.inference_port), "--metrics_port", str(self.metrics_port)]
        argv: list[str | Path] = [python, "-I", SERVER, "--model_dir", model.resolve(), "--host", LOOPBACK, *ports]
        environment = {"OMP_NUM_THREADS": "1", **env, "TMPDIR": str(sockets)}
        self.child = Child(name, argv, state_dir=state_dir, log=log, env=environment, cwd=folder)

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
