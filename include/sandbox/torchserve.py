"""One TorchServe as one replica of a revision: its configuration, its command, its readiness.

A version's `config.properties` is written for KServe's container: fixed ports, all interfaces, `/mnt/models`.
Here several replicas share a machine, so those parts are replaced and everything else is kept as the version
says. Java is started directly and not through the command `torchserve`, which hides Java's exit code and leaves
it running when it is itself killed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import aiohttp

from sandbox import programs
from sandbox.container import MODEL_MOUNT, Container, ContainerFailed
from sandbox.ports import LOOPBACK, free_port, give_back

# What TorchServe's worker says last when the handler does not load (ts/model_service_worker.py).
WORKER_DIED = "Backend worker process died."

# Half of the memory of Java's defaults, with no visible slowdown (docs/facts.md#memory-of-java).
_SMALL_JVM = "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k -XX:MaxDirectMemorySize=128m"

# TorchServe's own default writes 2 kB for each request. What the handler logs stays: it is what `kubectl logs`
# shows of a model that does not load.
_LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="%d{ISO8601} [%-5p] %t %c - %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_LOG" level="info">
      <RegexFilter regex="Backend received inference at.*" useRawMsg="true" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="org.pytorch.serve" level="warn"/>
    <Logger name="io.netty" level="error"/>
    <Root level="warn"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""


class TorchServe:
    """`container.Server`. `models` are the names that the version serves."""

    DIED: str | None = WORKER_DIED

    def __init__(self, container: Container) -> None:
        model, folder, sockets = container.model, container.folder, container.sockets
        said = read_properties(model / "config/config.properties")
        self.models = _served_models(said, model / "model-store")
        self._sockets = sockets
        self._ports = [free_port() for _ in range(5)]
        self.inference_port, self._management_port, self.metrics_port = self._ports[:3]
        folder.mkdir(parents=True, exist_ok=True)
        sockets.mkdir(parents=True, exist_ok=True)
        flags = said.pop("vmargs", _SMALL_JVM).split()
        config = folder / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in self._properties(said, model).items()))
        (folder / "log4j2.xml").write_text(_LOG4J)
        home, java = programs.torchserve_home(), programs.java()
        argv: list[str | Path] = [
            java,
            *flags,
            f"-Dmodel_server_home={home}",
            f"-Dlog4j.configurationFile=file://{folder.resolve()}/log4j2.xml",
            f"-Djava.io.tmpdir={sockets}",
            # Else Java 24 and later warn about what TorchServe's network library does.
            "--enable-native-access=ALL-UNNAMED",
            *("-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer", "--python", sys.executable),
            *("-f", config.resolve(), "-s", (model / "model-store").resolve(), "-ncs"),
        ]
        environment = {
            "OMP_NUM_THREADS": "1",
            # What KServe's runtime sets for protocol v1 (docs/facts.md#the-torchserve-runtime).
            "TS_SERVICE_ENVELOPE": "kserve",
            **container.env,
            **dict.fromkeys(("TMPDIR", "TEMP"), str(sockets)),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), str(folder.resolve() / "logs")),
            "JAVA_HOME": str(java.parents[1]),
        }
        self.child = container.process(argv, environment)

    def _properties(self, said: Mapping[str, str], model: Path) -> dict[str, str]:
        inference, management, metrics, grpc_inference, grpc_management = self._ports
        return {
            **{key: value.replace(MODEL_MOUNT, str(model.resolve())) for key, value in said.items()},
            "inference_address": f"http://{LOOPBACK}:{inference}",
            "management_address": f"http://{LOOPBACK}:{management}",
            "metrics_address": f"http://{LOOPBACK}:{metrics}",
            "grpc_inference_address": LOOPBACK,
            "grpc_management_address": LOOPBACK,
            "grpc_inference_port": str(grpc_inference),
            "grpc_management_port": str(grpc_management),
            "model_store": str((model / "model-store").resolve()),
        }

    async def loaded(self, http: aiohttp.ClientSession) -> bool:
        """Whether each model has a worker that is READY. `/ping` says Healthy with dead ones
        (docs/facts.md#ping-is-not-health)."""
        try:
            for model in self.models:
                url = f"http://{LOOPBACK}:{self._management_port}/models/{quote(model)}"
                async with http.get(url) as answer:
                    versions = await answer.json(content_type=None) if answer.status == 200 else []
                workers = [worker for version in versions for worker in version.get("workers", ())]
                if not any(worker.get("status") == "READY" for worker in workers):
                    return False
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return True

    async def stop(self) -> None:
        """Ends the server, gives its ports back, and removes what it unpacked."""
        await self.child.stop()
        give_back(self._ports)
        await asyncio.to_thread(shutil.rmtree, self._sockets, ignore_errors=True)


def read_properties(file: Path) -> dict[str, str]:
    """A `.properties` file as far as TorchServe's need it: `key=value`, comments, continued lines."""
    try:
        lines = file.read_text().replace("\\\n", "").splitlines()
    except FileNotFoundError:
        other = " (the version is one for runtime kserve)" if (file.parent / "serving.json").exists() else ""
        raise ContainerFailed(f"--ts-config file not found: {MODEL_MOUNT}/config/{file.name}{other}") from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith(("#", "!")))
    return {key.strip(): value.strip() for key, value in pairs}


def _served_models(said: Mapping[str, str], store: Path) -> list[str]:
    """The names KServe's wrapper serves: those of `model_snapshot` (TorchServe's kserve_wrapper/__main__.py)."""
    if not any(store.glob("*.mar")):
        raise ContainerFailed("kserve.errors.ModelMissingError: no .mar file in " + f"{MODEL_MOUNT}/model-store")
    try:
        return list(json.loads(said["model_snapshot"])["models"])
    except KeyError as error:
        raise ContainerFailed(f"config.properties: KeyError: {error}") from None
    except ValueError as error:
        raise ContainerFailed(f"config.properties: model_snapshot: json.decoder.JSONDecodeError: {error}") from None
