"""One service: how it stands, its newest release's evidence, its last releases; and its traffic over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from model_release import addresses as to
from model_release.cluster.lease import GUARD
from model_release.web import live, past, words
from model_release.web.evidence import seconds
from model_release.web.release import summary
from model_release.web.sources import Part, Sources, gather, read
from model_release.web.timeline import marks
from model_release.web.traffic import RANGES, queries, series

if TYPE_CHECKING:
    from model_release.spec import ModelSpec

Json = dict[str, Any]

_LISTED = 10
# So many releases' marks are read for one picture; a week of a busy service would be a wall of lines.
_MARKED = 4


def service(sources: Sources, key: str, specs: Mapping[str, ModelSpec]) -> Json:
    """Everything that the page of a service shows but its traffic. `specs` are the models on it, at least one."""
    one = next(iter(specs.values())).service
    known = read(sources.addresses).value or {}
    reads: dict[str, Callable[[], Any]] = {
        "services": partial(sources.services, one.namespace),
        "leases": partial(sources.leases, one.namespace),
        "past": partial(past.releases, sources, specs, service=key, limit=_LISTED),
    }
    parts = gather(reads)
    row = _standing(parts, one.name, specs)
    listed = parts["past"].value or {"releases": [], "next": None, "troubles": [parts["past"].trouble]}
    newest = listed["releases"][0] if listed["releases"] else None
    shown, verdict = _newest(sources, newest, specs)
    spec = specs[newest["model"]] if newest else next(iter(specs.values()))
    asked = queries(spec, step=5)
    return {
        "service": key,
        "models": sorted(specs),
        **row,
        "last": newest,
        "verdict": verdict,
        "newest": shown,
        "releases": listed["releases"],
        "more": listed["next"] is not None,
        "profile": spec.judge.profile,
        "queries": asked,
        "links": {
            "grafana": to.grafana(known.get("grafana"), spec),
            "prometheus": {name: to.graph(known.get("prometheus"), query) for name, query in asked.items()},
        },
        "troubles": [trouble for trouble in (*listed["troubles"], row["trouble"]) if trouble],
    }


def traffic(
    sources: Sources, key: str, specs: Mapping[str, ModelSpec], shown: str, now: datetime | None = None
) -> Json:
    """The service's lines over the last `shown` (a key of RANGES), with who is who and what happened meanwhile.

    One part that is down leaves the others: lines without marks, or marks without lines and the reason.
    """
    end = (now or datetime.now(UTC)).timestamp()
    start = end - RANGES[shown]
    one = next(iter(specs.values())).service
    happened = past.releases(sources, specs, service=key, limit=_MARKED)
    entries = [entry for entry in happened["releases"] if (seconds(entry["ended"]) or end) >= start]
    spec = specs[entries[0]["model"]] if entries else next(iter(specs.values()))
    reads: dict[str, Callable[[], Any]] = {
        "lines": partial(_lines, sources, spec, start, end),
        "services": partial(sources.services, one.namespace),
        "leases": partial(sources.leases, one.namespace),
    }
    records = {f"record {entry['release']}": _record_of(sources, specs, entry) for entry in entries}
    parts = gather(reads | records)
    row = _standing(parts, one.name, specs)
    roles = {part["revision"]: part["role"] for part in row["split"]}
    found: list[Json] = []
    for name in records:
        record = parts[name].value
        if record is None:
            continue
        found += marks(record)
        if (revision := (record.canary or {}).get("revision")) and record.outcome is None:
            roles.setdefault(revision, "canary")
        if (revision := (record.baseline or {}).get("revision")) and record.outcome is None:
            roles.setdefault(revision, "stable")
    lines = parts["lines"]
    return {
        "range": shown,
        "start": start,
        "end": end,
        "roles": roles,
        "marks": sorted((mark for mark in found if start <= mark["at"] <= end), key=lambda mark: float(mark["at"])),
        "lines": lines.value,
        "trouble": lines.trouble,
        "troubles": [*happened["troubles"], *(p.trouble for n, p in parts.items() if p.trouble and n != "lines")],
    }


def _lines(sources: Sources, spec: ModelSpec, start: float, end: float) -> Json:
    return series(sources.prometheus(), spec, start=start, end=end)


def _record_of(sources: Sources, specs: Mapping[str, ModelSpec], entry: Json) -> Callable[[], Any]:
    return partial(sources.releases(specs[entry["model"]].store).record, entry["release"])


def _standing(parts: Mapping[str, Part[Any]], name: str, specs: Mapping[str, ModelSpec]) -> Json:
    services, leases = parts["services"], parts["leases"]
    held = leases.value or {}
    row = live.standing((services.value or {}).get(name), held.get(name), services.trouble, specs, held.get(GUARD))
    if services.trouble is None and leases.trouble is not None:
        row |= {"trouble": leases.trouble, "guard": None}
    return row


def _newest(sources: Sources, entry: Json | None, specs: Mapping[str, ModelSpec]) -> tuple[Json | None, Json | None]:
    """What the newest release counted, and what the judge said last of it."""
    if entry is None:
        return None, None
    part: Part[Any] = read(_record_of(sources, specs, entry))
    if part.value is None:
        return {"release": entry["release"], "trouble": part.trouble, "evidence": None, "marks": []}, None
    shown = summary(part.value)
    steps = part.value.steps
    if not steps:
        return shown, None
    verdict = steps[-1].get("verdict") or {}
    said = {**words.decision(verdict.get("decision")), "reason": words.passed(verdict.get("reason"))}
    return shown, said | {"percent": steps[-1].get("percent")}
