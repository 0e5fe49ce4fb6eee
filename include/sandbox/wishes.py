"""What the user wants of a running sandbox: one file, written by the command line, followed by the supervisor."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sandbox import ports
from sandbox.errors import SandboxError


@dataclass(frozen=True)
class Load:
    """Requests for `service` (`namespace/name`), `rate` a second on average."""

    service: str
    rate: float

    def __post_init__(self) -> None:
        namespace, _, name = self.service.partition("/")
        if not namespace or not name or "/" in name:
            raise SandboxError(f"--service {self.service}: write namespace/name, for example models/digits")
        if not 0 < self.rate <= 1000:
            raise SandboxError(f"--rate {self.rate:g}: between 0 and 1000 requests a second")

    @property
    def host(self) -> str:
        namespace, name = self.service.split("/")
        return f"{name}.{namespace}.localhost"


@dataclass(frozen=True)
class Wishes:
    """Parts that shall not run (for fault tests), and the load, if any."""

    stopped: frozenset[str] = field(default_factory=frozenset)
    load: Load | None = None

    @classmethod
    def read(cls, state_dir: Path) -> Wishes:
        """What the file says; nothing special if there is none."""
        try:
            said = json.loads(_file(state_dir).read_text())
        except FileNotFoundError:
            return cls()
        return cls(frozenset(said["stopped"]), Load(**said["load"]) if said["load"] else None)

    def write(self, state_dir: Path) -> None:
        said = {"stopped": sorted(self.stopped), "load": asdict(self.load) if self.load else None}
        ports.replace(_file(state_dir), json.dumps(said))

    def with_load(self, load: Load | None) -> Wishes:
        return replace(self, load=load)

    def without(self, part: str) -> Wishes:
        return replace(self, stopped=self.stopped | {part})

    def including(self, part: str) -> Wishes:
        return replace(self, stopped=self.stopped - {part})


def _file(state_dir: Path) -> Path:
    return state_dir / "wishes.json"
