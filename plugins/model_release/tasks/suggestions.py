"""The versions that the form of a run suggests.

A DAG file that asked the store for them would do so every few seconds. Whoever publishes writes them into one Airflow
variable instead, and the dag processor, and nobody else, reads it when it parses. They are only suggestions: any
version of the store may be named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

VARIABLE = "model_release_versions"
_SHOWN = 20

_log = logging.getLogger(__name__)


def known() -> dict[str, list[str]]:
    """Versions by model, newest first; nothing in a process that runs a task, or where none were written."""
    from airflow.sdk import Variable, get_parsing_context
    from airflow.sdk.exceptions import AirflowRuntimeError

    if get_parsing_context().dag_id is not None:
        return {}
    try:
        found = json.loads(Variable.get(VARIABLE, default="{}"))
        return {str(model): [str(version) for version in versions] for model, versions in found.items()}
    except (AirflowRuntimeError, AttributeError, TypeError, ValueError) as error:
        _log.warning("No versions are suggested: %s", error)
        return {}


def remember(model: str, versions: Sequence[str]) -> None:
    """Puts the newest `versions` of a model into the form. Two writers at one moment: one of them writes next time."""
    from airflow.sdk import Variable

    before = _read(Variable.get(VARIABLE, default="{}"))
    newest = list(versions[:_SHOWN])
    if before.get(model) != newest:
        Variable.set(
            VARIABLE,
            json.dumps({**before, model: newest}),
            description="What the form of each release suggests as versions; written by task publish.",
        )


def _read(text: str) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
