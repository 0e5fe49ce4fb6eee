"""Buttons on a task: its release, its service, and the numbers that are being judged.

Airflow computes links when a task ends; a canary is looked at while it runs. So the operators push them first thing
(docs/facts.md#links-are-computed-at-the-end), and what is computed at the end is what was pushed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from model_release import addresses
from model_release.spec import ModelSpec
from model_release.tasks.run import Run


@attrs.define()
class _PushedLink(BaseOperatorLink):
    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


@attrs.define()
class PrometheusLink(_PushedLink):
    """Requests of both revisions by response code, in Prometheus' own page."""

    name = "Prometheus"


@attrs.define()
class ReleaseLink(_PushedLink):
    """This run's release on the Releases page: plan, looks, verdict."""

    name = "Release"


@attrs.define()
class ServiceLink(_PushedLink):
    """The service on the Releases page: its traffic over time, canary beside stable."""

    name = "Service"


@attrs.define()
class GrafanaLink(_PushedLink):
    """The service's dashboard; only where there is an Airflow connection `grafana`."""

    name = "Grafana"


LINKS = (ReleaseLink(), ServiceLink(), GrafanaLink(), PrometheusLink())


def push(ti: Any, spec: ModelSpec, run: Run) -> None:
    """Makes the links to the page, the service and Grafana work from now on. Pushing again replaces them."""
    from model_release.tasks import connections

    found: tuple[tuple[_PushedLink, str | None], ...] = (
        (ReleaseLink(), addresses.release_page(run.installation, run.release)),
        (ServiceLink(), addresses.service_page(run.installation, spec)),
        (GrafanaLink(), addresses.grafana(connections.grafana_address(), spec)),
    )
    for link, url in found:
        if url is not None:
            ti.xcom_push(key=link.xcom_key, value=url)


def push_for(ti: Any, spec: ModelSpec, revisions: Iterable[str]) -> None:
    """Makes the links of this task work from now on. Pushing again replaces them."""
    from model_release.metrics.profiles import profile
    from model_release.tasks import connections

    address = connections.prometheus_address()
    if address is None:
        return
    metrics = profile(spec.judge.profile, spec.judge.labels)
    by = f"{metrics.revision_label}, {metrics.code_label}"
    # A window holds two scrapes at least, and a rate wants two of them wherever it begins.
    over = max(60_000, round(2000 * spec.rollout.window.total_seconds()))
    rates = metrics.over("rate", metrics.requests, spec.service.namespace, revisions, over, by=by)
    ti.xcom_push(key=PrometheusLink().xcom_key, value=addresses.graph(address, rates, minutes=30))
