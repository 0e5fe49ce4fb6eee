"""A world for the doctor: the sandbox's API server, with Prometheus and S3 stood in for, so that each can be ill."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.patience import until
from tests.tasks.cluster import Pods, cluster, wanted
from tests.tasks.conftest import SPEC

from model_release.cluster import rollout
from model_release.cluster.services import InferenceServices
from model_release.doctor import World
from model_release.errors import MetricsUnavailable, StoreContested, StoreRefused, StoreUnavailable
from model_release.metrics.prometheus import Result, Series
from model_release.spec import ModelSpec

ROLE = Path(__file__).parents[2] / "include" / "manifests" / "role.yaml"


class Store:
    """A bucket in memory. `heeds` False: an S3 that ignores conditions."""

    uri = "s3://models/digits/"

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.heeds: bool | str = True
        self.refused, self.off = False, timedelta(0)
        self.busy_after: int | None = None  # writes that are still taken; those after them are answered 503

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> None:
        if self.busy_after is not None:
            self.busy_after -= 1
            if self.busy_after < 0:
                raise StoreUnavailable("S3 answers SlowDown")
        if self.refused:
            raise StoreRefused("403: AccessDenied")
        there = str(self.content[key]) if key in self.content else None
        if there != if_match and (self.heeds is True or (self.heeds == "if none" and if_match is None)):
            raise StoreContested("somebody wrote")
        self.content[key] = content

    def read_json(self, key: str) -> tuple[Any, str]:
        return self.content[key], str(self.content[key])

    def remove(self, keys: list[str]) -> None:
        for key in keys:
            self.content.pop(key, None)

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.off


class Prometheus:
    """Answers `time()`, and one number to everything else; holds no series."""

    numbers = 1
    away = False

    def query(self, promql: str, at: datetime | None = None) -> Result:
        if self.away:
            raise MetricsUnavailable("refused")
        now = datetime.now(UTC).timestamp()
        one = Series({}, [(round(now * 1000), now)])
        return Result([one] if promql == "time()" else [one] * self.numbers)

    def raw(self, series_selector: str, after: int, until: int) -> list[Series]:
        return []

    def label_values(self, *_: Any, **__: Any) -> list[str]:
        return []


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[Any]:
    with cluster(tmp_path, Pods()) as (server, client):
        yield SimpleNamespace(server=server, client=client)


@pytest.fixture
def world(kube: Any) -> World:
    spec = ModelSpec.model_validate(SPEC)
    store, prometheus = Store(), Prometheus()
    return World(spec, ROLE, lambda: kube.client, lambda: store, lambda: prometheus)


def deployed(kube: Any, spec: ModelSpec) -> None:
    services = InferenceServices(kube.client)
    rollout.stage(services, wanted(spec, "0123456789abcdef"), rollout.Baseline())
    until(lambda: (live := services.get("models", "digits")) and live.rolled_out, "never rolled out")
