"""Where the pages read from, each part apart: what is down is told beside what is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass
from threading import current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from model_release.errors import ReleaseError

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.judging.record import Record
    from model_release.metrics.prometheus import Prometheus
    from model_release.release.index import Entry, Page
    from model_release.spec import ModelSpec

T = TypeVar("T")
K = TypeVar("K")

#: Seconds that a page waits for a part. Whoever looks at night sees the rest soon, and what is missing by name.
PATIENCE = 5.0

_log = logging.getLogger(__name__)
_POOL = "releases-page"
_pool = ThreadPoolExecutor(max_workers=24, thread_name_prefix=_POOL)


class Releases(Protocol):
    """What the pages ask of one store's `release.index.History`."""

    def page(
        self,
        *,
        model: str | None = None,
        service: str | None = None,
        outcome: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page: ...

    def newest(self, *, model: str | None = None, service: str | None = None) -> Entry | None: ...

    def record(self, release: str) -> Record | None: ...


@dataclass(frozen=True)
class Models:
    """The model files that can be read, by model, and a line for each that cannot."""

    specs: Mapping[str, ModelSpec]
    troubles: tuple[str, ...] = ()


class Sources(Protocol):
    """The world of the pages. Each method makes one read, and raises a ReleaseError when it fails."""

    def models(self) -> Models: ...

    def releases(self, store: str) -> Releases: ...

    def services(self, namespace: str) -> dict[str, InferenceService]: ...

    def leases(self, namespace: str) -> dict[str, Lease]: ...

    def prometheus(self) -> Prometheus:
        """A client of the caller's own: it is not for several threads at once."""

    def addresses(self) -> dict[str, str]:
        """Where a person finds `prometheus` and `grafana`; without those that are not known."""

    def release_of(self, spec: ModelSpec, run_id: str) -> str | None:
        """The name of the release that this run of the model's DAG is; None when there is no such run."""


@dataclass(frozen=True)
class Part(Generic[T]):
    """What was read, or the one line that says why not. Never both, and never a value made up for a missing one."""

    value: T | None = None
    trouble: str | None = None


def gather(reads: Mapping[K, Callable[[], Any]], patience: float = PATIENCE) -> dict[K, Part[Any]]:
    """Makes all reads at once; each has its own part, whatever becomes of the others. Within such a read they are made
    one after the other: were every worker of the pool to wait for the pool, none would be left to be waited for."""
    if current_thread().name.startswith(_POOL):
        return {key: read(one) for key, one in reads.items()}
    end = monotonic() + patience
    started: Sequence[tuple[K, Future[Any]]] = [(key, _pool.submit(one)) for key, one in reads.items()]
    return {key: _part(future, end, patience) for key, future in started}


def read(one: Callable[[], T]) -> Part[T]:
    """One read in the caller's own thread."""
    try:
        return Part(one())
    except Exception as error:
        return Part(trouble=told(error))


def told(error: Exception) -> str:
    """The line for a person. What is no trouble of ours is named by its kind only; the log has the rest."""
    if isinstance(error, ReleaseError):
        return str(error)
    _log.error("a part of the Releases page could not be read", exc_info=error)
    return f"could not be read ({type(error).__name__}; Airflow's log of the API server says more)"


def _part(future: Future[Any], end: float, patience: float) -> Part[Any]:
    try:
        return Part(future.result(max(end - monotonic(), 0.0)))
    except TookTooLong:
        future.cancel()
        return Part(trouble=f"does not answer within {patience:g} s")
    except Exception as error:
        return Part(trouble=told(error))
