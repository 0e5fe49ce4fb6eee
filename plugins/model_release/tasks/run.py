"""Which run this is: the one identity that lease, record and log share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from model_release.addresses import release_page
from model_release.spec import ModelSpec

Rollout = Literal["canary", "direct", "none"]


@dataclass(frozen=True)
class Run:
    """The Airflow run that releases. Equal for all tries and all tasks of it."""

    dag_id: str
    run_id: str
    url: str
    installation: str
    release: str  # the release's name in the store: model, time, and a digest that tells runs of one second apart
    rollout: Rollout
    params: Mapping[str, Any]
    by: str | None = None  # who asked for it, where it was a person
    bundle: str | None = None  # the DAG bundle that the run is of, `name@version` where it has versions

    @classmethod
    def of(cls, context: Mapping[str, Any], spec: ModelSpec) -> Run:
        """From a task's context. A backfill rebuilds versions and moves no traffic unless its conf says so."""
        dag_run, params = context["dag_run"], dict(context["params"])
        run_id = str(dag_run.run_id)
        base = installation()
        digest = hashlib.sha256(f"{base} {dag_run.dag_id} {run_id}".encode()).hexdigest()[:8]
        rollout = params.get("rollout", "auto")
        if rollout == "auto":
            # Compared and not printed: Airflow's kind of run is an enumeration, whose text is not its value.
            rollout = "none" if dag_run.run_type == "backfill" else "canary"
        return cls(
            dag_id=str(dag_run.dag_id),
            run_id=run_id,
            url=f"{base}/dags/{quote(str(dag_run.dag_id))}/runs/{quote(run_id)}",
            installation=base,
            release=f"{spec.model}-{dag_run.run_after:%Y%m%dT%H%M%S}-{digest}",
            rollout=rollout,
            params=params,
            by=getattr(dag_run, "triggering_user_name", None),
            bundle=_bundle(getattr(context.get("ti"), "bundle_instance", None)),
        )

    @property
    def page(self) -> str:
        """Where people see the release: Airflow's page Releases."""
        return release_page(self.installation, self.release)

    @property
    def who(self) -> str:
        """Who asked for it, for the record."""
        return self.by or "nobody by name"

    @property
    def moves_traffic(self) -> bool:
        return self.rollout != "none"


def _bundle(found: Any) -> str | None:
    return None if found is None else "@".join(str(part) for part in (found.name, found.version) if part)


def installation() -> str:
    """This Airflow's address: links begin with it, and leases tell two Airflows apart by it."""
    from airflow.sdk.configuration import conf

    return str(conf.get("api", "base_url", fallback="http://localhost:8080")).rstrip("/")
