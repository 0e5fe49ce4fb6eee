"""A release that takes too long: Airflow's `DeadlineAlert`, and what people are told by it.

The scheduler looks, the triggerer tells: no worker has to be free for it, and a task that hangs cannot keep it back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from model_release.errors import ReleaseError
from model_release.spec import ModelSpec, format_duration
from model_release.tasks import notify, records
from model_release.tasks.aside import aside
from model_release.tasks.run import Run

_log = logging.getLogger(__name__)


def alert(spec: ModelSpec) -> DeadlineAlert | None:
    """For the model's DAG: `notify.after` from the moment at which a run is queued; None where the file has none."""
    if spec.notify is None or spec.notify.after is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=spec.notify.after,
        callback=AsyncCallback(tell_late, kwargs={"spec": spec.model_dump(mode="json", exclude_none=True)}),
        name=notify.LATE,
    )


async def tell_late(spec: dict[str, Any], context: Mapping[str, Any]) -> str:
    """Called by the triggerer when the time is over, with the model file that the run was queued by. Told once of each
    run, and of none that has ended; returns what was told."""
    return await aside(_tell, ModelSpec.model_validate(spec), context["dag_run"])


def _tell(spec: ModelSpec, told: Mapping[str, Any]) -> str:
    assert spec.notify is not None
    assert spec.notify.after is not None
    moment = told["run_after"]
    dag_run = SimpleNamespace(
        dag_id=told["dag_id"],
        run_id=told["dag_run_id"],
        run_type=told["run_type"],
        run_after=moment if isinstance(moment, datetime) else datetime.fromisoformat(moment),
    )
    run = Run.of({"dag_run": dag_run, "params": told.get("conf") or {}}, spec)
    sentence = f"{format_duration(spec.notify.after)} after it was queued it has not ended"
    try:
        record = records.read(spec, run)
    except ReleaseError as error:
        _log.warning("How far %s is cannot be read: %s", run.release, error)
        record = None
    else:
        if record is None:
            sentence += "; it has not begun: the DAG is paused, or another run of the model is before it"
        elif record.outcome is not None:
            return f"nothing: {run.release} has ended"
        elif record.traffic:
            shares = ", ".join(f"{name} {share} %" for name, share in record.traffic[-1]["revisions"].items())
            sentence += f"; the traffic: {shares}"
        else:
            sentence += "; no traffic was moved yet"
    notify.tell(spec, run, notify.LATE, f"{sentence}.")
    return sentence
