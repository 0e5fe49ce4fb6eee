"""Sources and sign-in as Airflow has them. The only module of the pages that imports Airflow, and only when asked."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from model_release.errors import ClusterRefused, ReleaseError, SpecError, StoreRefused
from model_release.web.sources import Models, Releases

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.metrics.prometheus import Prometheus
    from model_release.spec import ModelSpec

# How long a client is used before its connection is looked up again: whoever changes a connection sees it soon.
_KEPT = 300.0
_SECONDS = 4.0


@dataclass
class _Kept:
    """Clients by name. Making one reads a connection and takes a tenth of a second and more; no data is kept."""

    made: dict[str, tuple[float, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, name: str, make: Callable[[], Any], refused: type[ReleaseError]) -> Any:
        from airflow.sdk.exceptions import AirflowNotFoundException

        with self.lock:
            since, client = self.made.get(name, (0.0, None))
            if client is None or time.monotonic() - since > _KEPT:
                try:
                    client = make()
                except AirflowNotFoundException as error:
                    raise refused(f"there is no Airflow connection {name!r}") from error
                self.made[name] = time.monotonic(), client
            return client


class AirflowSources:
    """The four connections of a release, and the optional `grafana`, looked up by the API server."""

    def __init__(self, models: Path) -> None:
        self._folder = models
        self._read: dict[Path, tuple[tuple[int, int], ModelSpec | str]] = {}
        self._clients = {name: _Kept() for name in ("kubernetes", "model_store")}

    def warm(self) -> None:
        """Makes the clients in the background, so that the first page need not wait for a second of imports. What
        fails is told by the page that needs it."""
        for make in (self._cluster, self._s3):
            threading.Thread(target=_quietly, args=(make,), daemon=True).start()

    def models(self) -> Models:
        """The model files; one that has not changed since is not read again."""
        from model_release.model_file import files_in, load

        found: dict[Path, tuple[tuple[int, int], ModelSpec | str]] = {}
        for path in files_in(self._folder):
            about = path.stat()
            stamp = (about.st_mtime_ns, about.st_size)
            kept = self._read.get(path)
            if kept is None or kept[0] != stamp:
                try:
                    kept = stamp, load(path)
                except SpecError as error:
                    kept = stamp, str(error)
            found[path] = kept
        self._read = found
        specs: dict[str, ModelSpec] = {}
        troubles = []
        for _, one in found.values():
            if isinstance(one, str):
                troubles.append(one)
            else:
                specs.setdefault(one.model, one)
        return Models(specs, tuple(troubles))

    def releases(self, store: str) -> Releases:
        from model_release.release.index import History
        from model_release.store.store import Store

        return _Lazily(lambda: History(Store(self._reach(store), store)))

    def services(self, namespace: str) -> dict[str, InferenceService]:
        from model_release.cluster.services import InferenceServices

        return InferenceServices(self._cluster()).within(namespace)

    def leases(self, namespace: str) -> dict[str, Lease]:
        from model_release.cluster.leases import Leases

        return {one.service: one for one in Leases(self._cluster()).within(namespace)}

    def prometheus(self) -> Prometheus:
        from model_release.tasks import connections

        return connections.prometheus()

    def addresses(self) -> dict[str, str]:
        from model_release.tasks import connections

        found = {"prometheus": connections.prometheus_address(), "grafana": connections.grafana_address()}
        return {name: address for name, address in found.items() if address}

    def release_of(self, spec: ModelSpec, run_id: str) -> str | None:
        from airflow.models.dagrun import DagRun

        from model_release.tasks.run import Run
        from model_release.web.access import dag_of

        found = DagRun.find_duplicate(dag_of(spec.model), run_id)
        return Run.of({"dag_run": found, "params": {}}, spec).release if found is not None else None

    def _cluster(self) -> Any:
        from model_release.tasks import connections

        return self._clients["kubernetes"].get("kubernetes", lambda: connections.cluster("page"), ClusterRefused)

    def _s3(self) -> Any:
        return self._clients["model_store"].get("model_store", _quick_s3, StoreRefused)

    def _reach(self, uri: str) -> Any:
        from model_release.store.objects import address
        from model_release.tasks import connections

        where = address(uri)
        if where.kind == "s3":
            return self._s3()
        return self._clients["model_store"].get(where.place, lambda: connections.reach(uri, quick=True), StoreRefused)


class _Lazily:
    """A store's history, opened when it is asked for: a missing connection is then the trouble of that read alone."""

    def __init__(self, open_: Callable[[], Releases]) -> None:
        self._open = open_

    def page(self, **asked: Any) -> Any:
        return self._open().page(**asked)

    def newest(self, **asked: Any) -> Any:
        return self._open().newest(**asked)

    def record(self, release: str) -> Any:
        return self._open().record(release)


def _quietly(make: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        make()


def _quick_s3() -> Any:
    """A client that would rather say that the store is away than keep a person waiting; made for many threads."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    from model_release.tasks.connections import STORE

    config = Config(
        connect_timeout=2, read_timeout=_SECONDS, retries={"total_max_attempts": 1}, max_pool_connections=32
    )
    return S3Hook(aws_conn_id=STORE, config=config).get_conn()


class AirflowAccess:
    """Airflow's own sign-in (bearer token or its cookie) and its auth manager's answer for each DAG."""

    @property
    def user(self) -> Callable[..., Any]:
        from airflow.api_fastapi.core_api.security import get_user

        found: Callable[..., Any] = get_user
        return found

    def readable(self, user: Any, dag_ids: Collection[str]) -> set[str]:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
        from airflow.models.dag import DagModel

        manager, teams = get_auth_manager(), DagModel.get_dag_id_to_team_name_mapping(list(dag_ids))
        return {
            dag_id
            for dag_id in dag_ids
            if manager.is_authorized_dag(
                method="GET",
                access_entity=DagAccessEntity.RUN,
                details=DagDetails(id=dag_id, team_name=teams.get(dag_id)),
                user=user,
            )
        }

    def login(self, back: str) -> str:
        from airflow.api_fastapi.app import get_auth_manager

        address = get_auth_manager().get_url_login()
        return f"{address}{'&' if '?' in address else '?'}{urlencode({'next': back})}"


def prefix() -> str:
    """The path of Airflow's own pages, without a slash at its end: empty, or what a proxy puts before."""
    from airflow.configuration import conf

    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")


def model_files() -> Path:
    """`include/models` beside the folder of DAGs."""
    from airflow.configuration import conf

    return Path(conf.get("core", "dags_folder")).parent / "include" / "models"
