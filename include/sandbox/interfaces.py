"""Where the emulated control plane ends and real processes begin.

`kube/` decides by KServe's and Knative's rules which revisions should run and how traffic is split; it knows
nothing of processes. The rest of the sandbox runs revisions and programs the splitter; it knows nothing of
InferenceServices. This file is all that they know of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Phase(StrEnum):
    """The life of a revision's pod, as far as KServe's status tells it apart
    (docs/facts.md#how-a-failing-revision-shows)."""

    PENDING = "Pending"  # no process yet
    DOWNLOADING = "Downloading"  # storage-initializer runs
    DOWNLOAD_FAILED = "DownloadFailed"  # storage-initializer ended with an error
    STARTING = "Starting"  # server runs, not ready
    READY = "Ready"  # the container answers its readiness probe
    CRASHED = "Crashed"  # the server ended with an error; started again with back-off


@dataclass(frozen=True)
class RevisionKey:
    namespace: str
    name: str  # classifier-vit-predictor-00002


@dataclass(frozen=True)
class RevisionTemplate:
    """What a pod needs: the part of a Knative revision that the runtime reads."""

    key: RevisionKey
    service: str  # the InferenceService's name = the model's name in the URL
    storage_uri: str
    image: str = ""  # says which server
    replicas: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    container_concurrency: int = 0  # 0: no limit
    timeout_seconds: int = 300


@dataclass(frozen=True)
class PodState:
    phase: Phase
    ready_replicas: int = 0
    message: str = ""  # last log lines of what failed
    exit_code: int | None = None
    pods: tuple[str, ...] = ()  # names, for `kubectl get pods` and `kubectl logs`


class Workloads(Protocol):
    """Runs revisions. Every call may be repeated: it changes what differs and nothing else."""

    async def ensure(self, template: RevisionTemplate) -> None: ...

    async def remove(self, key: RevisionKey) -> None: ...

    def state(self, key: RevisionKey) -> PodState: ...

    def log(self, key: RevisionKey, tail: int | None = None) -> str: ...

    def kill(self, key: RevisionKey) -> None:
        """Ends its processes as a crash does; they are started again. One that does not run is no error."""
        ...


@dataclass(frozen=True)
class Route:
    """One host name at the front door and the share of each revision in it (percents sum to 100, or empty)."""

    host: str  # digits.models.localhost, latest-digits-predictor.models.localhost
    shares: Mapping[RevisionKey, int]


class Router(Protocol):
    """Programs the traffic splitter. `program` replaces everything there was, at once; it returns when the
    splitter acts on it."""

    async def program(self, routes: list[Route]) -> None: ...


Manifest = dict[str, Any]
