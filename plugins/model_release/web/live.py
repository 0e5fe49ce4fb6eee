"""What one service does now, as the cluster says it: the split, who is stable and who is canary, and the stage."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from model_release.errors import ReleaseError
from model_release.release.guard import Beats
from model_release.release.index import version_of
from model_release.web import words

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.cluster.release import Release
    from model_release.release.index import Entry

Json = dict[str, Any]

# What this process has seen of guards: one lives whose lease changes, whatever its clock says.
BEATS = Beats()


def standing(
    service: InferenceService | None,
    lease: Lease | None,
    trouble: str | None,
    models: Collection[str],
    guard: Lease | None = None,
) -> Json:
    """The service as it stands. `trouble` is why the cluster told nothing; all is unknown then, and nothing is zero.

    A release is named, and its run, where it is of one of `models`: others may release to the service, too. `guard` is
    the guard's own lease in the namespace; who could not read the leases does not know of it, and says None instead.
    """
    release, unread = _release(lease)
    if trouble is not None:
        return _said("unknown", trouble=trouble)
    if service is None:
        return _said("absent", **_stage(lease, release, models), trouble=unread)
    stable, canary = _revisions(service)
    share = service.traffic.get(canary, 0) if canary else None
    name = "live"
    if canary:
        back = release is not None and release.went_back is not None
        name = "canary" if share else "taken_back" if back else "staged"
    elif lease is not None and lease.holder:
        name = "releasing"
    elif not service.ready:
        name = "waking"
    newest = version_of(service.storage_uri)
    before = version_of(release.baseline.storage_uri) if release and release.baseline else None
    return _said(
        name,
        stable={"revision": stable, "version": before if canary else newest} if stable else None,
        canary={"revision": canary, "version": newest, "percent": share} if canary else None,
        split=_split(service, stable, canary),
        ready=service.ready,
        guard=BEATS.alive(guard),
        **_stage(lease, release, models),
        trouble=unread,
    )


def with_last(row: Json, entry: Entry | None, trouble: str | None) -> Json:
    """The row with the service's last release. It also names the stable version where only the release knows it."""
    if entry is None:
        return row | {"last": None, "last_trouble": trouble}
    stable = row["stable"]
    if stable and stable["version"] is None and row["canary"] and entry.baseline:
        stable = stable | {"version": entry.baseline}
    return row | {"stable": stable, "last": listed(entry), "last_trouble": None}


def listed(entry: Entry) -> Json:
    """One release in a list."""
    return {
        "release": entry.release,
        "model": entry.model,
        "service": entry.service,
        "version": entry.version,
        "baseline": entry.baseline,
        "started": entry.started,
        "ended": entry.ended,
        "outcome": words.outcome(entry.outcome, entry.cause),
        "running": entry.outcome is None,
        "reason": entry.reason,
        "percent": entry.percent,
        "note": entry.run.get("note"),
        "run": entry.run.get("url"),
    }


def _said(name: str, **more: Any) -> Json:
    row: Json = {
        "state": words.state(name),
        "stable": None,
        "canary": None,
        "split": [],
        "ready": None,
        "stage": None,
        "since": None,
        "release": None,
        "holder": None,
        "frozen": None,
        "looked": None,
        "guard": None,
        "trouble": None,
    }
    return row | more


def _release(lease: Lease | None) -> tuple[Release | None, str | None]:
    try:
        return (lease.release if lease is not None else None), None
    except ReleaseError as error:
        return None, str(error)


def _stage(lease: Lease | None, release: Release | None, models: Collection[str]) -> Json:
    if lease is None:
        return {}
    found: Json = {"frozen": lease.frozen}
    if lease.holder:
        found |= {"holder": lease.holder, "since": lease.since, "stage": "held by somebody unknown"}
    if release is not None:
        shown = not release.record or release.record.rsplit("-", 2)[0] in models  # model, time and digest
        found |= {
            "stage": release.stage,
            "since": release.opened_at or lease.since,
            "release": release.record if release.record and shown else None,
            "holder": release.owner.url if shown else None,
            "looked": {"at": lease.renewed, "by": lease.looked_by or "a task"} if lease.renewed else None,
        }
    return found


def _revisions(service: InferenceService) -> tuple[str | None, str | None]:
    """Stable and canary by name. Beside a split, stable is where the rest of the traffic goes."""
    stable, newest = service.stable_revision, service.latest_created
    if service.is_split and newest != stable:
        return stable, newest
    return stable or service.latest_ready, None


def _split(service: InferenceService, stable: str | None, canary: str | None) -> list[Json]:
    roles = {stable: "stable", canary: "canary"}
    parts = [
        {"revision": revision, "percent": percent, "role": roles.get(revision, "other")}
        for revision, percent in service.traffic.items()
    ]
    order = {"stable": 0, "other": 1, "canary": 2}
    return sorted(parts, key=lambda part: order[str(part["role"])])
