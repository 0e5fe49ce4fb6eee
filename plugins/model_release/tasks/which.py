"""Which version does a run release? One rule, said in one sentence, kept in the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from model_release.errors import SpecError

# Runs that stand for a moment of the schedule. All others are asked for now, whatever logical date they bear: a run
# from the form may have none at all, and one that an asset started has none ever.
_OF_AN_INTERVAL = ("scheduled", "backfill")


@dataclass(frozen=True)
class Choice:
    """What a run is to release.

    Attributes:
        version: that version of the store, without building; None to build.
        revision: that commit of the hub, or the candidate in the folder of that name; None for the newest.
        not_later_than: candidates made later do not count.
        rule: why, for the log and the record.
    """

    version: str | None
    revision: str | None
    not_later_than: datetime
    rule: str


def choose(dag_run: Any, params: Mapping[str, Any], *, now: datetime | None = None) -> Choice:
    """The rule: the version that the form names; else the revision that it names; else the newest candidate not later
    than the end of the run's data interval, or than now for a run that stands for no interval.

    `dag_run` is Airflow's, of a task's context. The same run of the schedule gets the same answer at any time.

    Raises:
        SpecError: the form names a version and a revision, or wants a roll-out without a canary and no reason is given.
    """
    version, revision = params.get("version"), params.get("revision")
    moment = now or datetime.now(UTC)
    if version and revision:
        raise SpecError("the form names a version and a revision; one of them says what to release")
    if params.get("rollout") == "direct" and not (version and str(params.get("note") or "").strip()):
        raise SpecError(
            "rollout: direct is for a version that was live before: the form names it, and the note says why"
        )
    if version:
        return Choice(version, None, moment, f"version {version}, named by the form")
    if revision:
        return Choice(None, revision, moment, f"revision {revision}, named by the form")
    if dag_run.run_type in _OF_AN_INTERVAL:
        end = dag_run.data_interval_end or dag_run.logical_date or dag_run.run_after
        return Choice(None, None, end, f"the newest not later than {_told(end)}, the end of the run's data interval")
    return Choice(None, None, moment, f"the newest by now, {_told(moment)}")


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
