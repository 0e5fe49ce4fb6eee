"""What the form of a run suggests: the versions that may be released again, and what the last plan said.

A DAG file that asked the store for them would do so every few seconds. Whoever publishes, and whoever plans, writes
them into one Airflow variable instead, and the dag processor, and nobody else, reads it when it parses. They are only
suggestions: any version of the store may be named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

VARIABLE = "model_release_versions"
_SHOWN = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggested:
    """Versions, newest first; and the lines of the plan that was made last."""

    versions: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()


def known() -> dict[str, Suggested]:
    """What is suggested by model; nothing in a process that runs a task, or where nothing was written."""
    from airflow.sdk import Variable, get_parsing_context
    from airflow.sdk.exceptions import AirflowRuntimeError

    if get_parsing_context().dag_id is not None:
        return {}
    try:
        found = json.loads(Variable.get(VARIABLE, default="{}"))
        return {str(model): _suggested(one) for model, one in found.items()}
    except (AirflowRuntimeError, AttributeError, TypeError, ValueError) as error:
        _log.warning("No versions are suggested: %s", error)
        return {}


def remember(model: str, versions: Sequence[str] | None = None, plan: Sequence[str] | None = None) -> None:
    """Puts the newest `versions` of a model into the form, or what its `plan` says. Two writers at one moment: one of
    them writes next time."""
    from airflow.sdk import Variable

    every = _read(Variable.get(VARIABLE, default="{}"))
    before = _suggested(every.get(model))
    now = before
    if versions is not None:
        now = replace(now, versions=tuple(versions[:_SHOWN]))
    if plan is not None:
        now = replace(now, plan=tuple(plan))
    if now != before:
        Variable.set(
            VARIABLE,
            json.dumps({**every, model: asdict(now)}),
            description="What the form of each release suggests; written by the tasks preflight and publish.",
        )


def _suggested(one: object) -> Suggested:
    """From the variable; an older edition wrote a list of versions."""
    if isinstance(one, Mapping):
        return Suggested(_texts(one.get("versions")), _texts(one.get("plan")))
    return Suggested(_texts(one))


def _texts(found: object) -> tuple[str, ...]:
    return tuple(str(text) for text in found) if isinstance(found, list) else ()


def _read(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
