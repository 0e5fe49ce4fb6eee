"""A service of docker-compose.yaml as processes of this machine: its own command, environment and health check.

What a container has and a process has not is replaced by name: the other services' addresses, ports, and folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = PROJECT / "docker-compose.yaml"
BIN = Path(sys.executable).parent


def compose(env_file: Path, *words: str, file: Path = COMPOSE) -> subprocess.CompletedProcess[str]:
    """Docker Compose itself, which needs no engine for `config`; its environment holds none of the file's variables."""
    command = [BIN / "docker-compose", "--env-file", env_file, "--profile", "*", "--file", file, *words]
    bare = {"PATH": os.environ["PATH"], "HOME": str(env_file.parent)}
    return subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60, check=False)


def instruction(dockerfile: Path, name: str) -> list[str]:
    """The arguments of the last instruction of this name, in its JSON form; [] where there is none."""
    text = dockerfile.read_text().replace("\\\n", " ")
    found = [line.split(None, 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return list(json.loads(found[-1])) if found else []


def image_environment(dockerfile: Path) -> dict[str, str]:
    """What ENV says in a Dockerfile."""
    text = dockerfile.read_text().replace("\\\n", " ")
    lines = [line.split(None, 1)[1] for line in text.splitlines() if line.startswith("ENV ")]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


@dataclass
class Container:
    """One service, resolved. `places` maps text of the container's world to this machine's."""

    name: str
    service: dict[str, Any]
    places: Mapping[str, str]
    folder: Path
    path: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)

    @property
    def dockerfile(self) -> Path | None:
        build = self.service.get("build")
        return Path(build["context"], build["dockerfile"]) if build else None

    @property
    def command(self) -> list[str]:
        """Entrypoint and command, as the engine puts them together."""
        dockerfile = self.dockerfile
        entrypoint = self.service.get("entrypoint")
        if entrypoint is None:
            entrypoint = instruction(dockerfile, "ENTRYPOINT") if dockerfile else []
        said = self.service.get("command")
        if said is None and dockerfile:
            said = instruction(dockerfile, "CMD")
        return [self.here(word) for word in [*entrypoint, *(said or [])]]

    @property
    def environment(self) -> dict[str, str]:
        image = image_environment(self.dockerfile) if self.dockerfile else {}
        said = {**image, **self.service.get("environment", {})}
        here = {name: self.here(value) for name, value in said.items() if value is not None}
        path = ":".join(filter(None, [self.path, str(BIN), os.environ["PATH"]]))
        return {**here, "PATH": path, "HOSTNAME": socket.gethostname(), "HOME": str(self.folder), **self.extra}

    @property
    def probe(self) -> list[str]:
        kind, *words = [self.here(word) for word in self.service["healthcheck"]["test"]]
        return words if kind == "CMD" else ["sh", "-c", *words]

    def here(self, text: str) -> str:
        # In Compose's output a dollar sign that is to reach the container is doubled.
        text = text.replace("$$", "$")
        for there, place in self.places.items():
            text = text.replace(there, place)
        return text

    def healthy(self, timeout: float = 30) -> bool:
        """Whether the health check, run as it stands in the file, exits 0."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(self.probe, env=self.environment, capture_output=True, timeout=timeout, check=False)
            return done.returncode == 0
        return False

    @contextlib.contextmanager
    def running(self, patience: float = 90, user: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """The command, until its health check passes; ended with all it started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{self.name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command, env=self.environment, stdout=out, stderr=out, cwd=self.folder, user=user,
                start_new_session=True,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + patience
            while not self.healthy():
                assert process.poll() is None, f"{self.name} ended: {log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"{self.name} is not healthy: {log.read_text()[-3000:]}"
                time.sleep(0.5)
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: SIGTERM, then SIGKILL."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
