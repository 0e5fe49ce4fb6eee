"""Buttons on a task: the service, and the numbers that are being judged.

Airflow computes links when a task ends; a canary is looked at while it runs. So the operators push them first thing
(facts/airflow.md 3.4), and what is computed at the end is what was pushed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

import attrs
from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from model_release.spec import ModelSpec


@attrs.define()
class _PushedLink(BaseOperatorLink):
    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


@attrs.define()
class PrometheusLink(_PushedLink):
    """Requests of both revisions by response code, in Prometheus' own page."""

    name = "Prometheus"


LINKS = (PrometheusLink(),)


def push_for(ti: Any, spec: ModelSpec, revisions: Iterable[str]) -> None:
    """Makes the links of this task work from now on. Pushing again replaces them."""
    from model_release.metrics.profiles import profile
    from model_release.tasks import connections

    address = connections.prometheus_address()
    if address is None:
        return
    requests = profile(spec.judge.profile).requests_of(spec.service.namespace, revisions)
    graph = {"g0.expr": f"rate({requests}[1m])", "g0.tab": "0", "g0.range_input": "30m"}
    ti.xcom_push(key=PrometheusLink().xcom_key, value=f"{address}/graph?{urlencode(graph)}")
