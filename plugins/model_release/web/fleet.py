"""The fleet: a line for each service of all model files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from model_release.cluster.lease import GUARD
from model_release.web import live, words
from model_release.web.sources import Part, Sources, gather

if TYPE_CHECKING:
    from model_release.release.index import Entry
    from model_release.spec import ModelSpec
    from model_release.web.sources import Releases

Json = dict[str, Any]

# Where several services share a store, one page of its index mostly holds the newest release of each.
_PAGE_FOR_EACH = 4


def fleet(sources: Sources, specs: Mapping[str, ModelSpec], troubles: tuple[str, ...] = ()) -> Json:
    """Every service of `specs`, those with a canary first. Reads one LIST of InferenceServices and one of leases for
    each namespace, the newest entry of each service's history, and the record of each release that runs."""
    named: dict[str, list[ModelSpec]] = {}
    for spec in specs.values():
        named.setdefault(spec.service.key, []).append(spec)
    namespaces = sorted({spec.service.namespace for spec in specs.values()})
    reads: dict[tuple[str, str], Callable[[], Any]] = {}
    for namespace in namespaces:
        reads["services", namespace] = partial(sources.services, namespace)
        reads["leases", namespace] = partial(sources.leases, namespace)
    for store in sorted({spec.store for spec in specs.values()}):
        reads["newest", store] = partial(_newest, sources, store, specs)
    parts = gather(reads)
    rows = [_row(key, members, parts) for key, members in named.items()]
    _add_verdicts(sources, rows, specs)
    rows.sort(key=lambda row: (_rank(row), row["service"]))
    return {
        "services": rows,
        "counts": _counts(rows),
        "troubles": [*troubles, *_troubles(parts)],
    }


def _newest(sources: Sources, store: str, specs: Mapping[str, ModelSpec]) -> dict[str, Entry]:
    """The newest entry of each service that releases into `store`."""
    releases = sources.releases(store)
    wanted = {spec.service.key for spec in specs.values() if spec.store == store}
    found: dict[str, Entry] = {}
    if len(wanted) > 1:
        for entry in releases.page(limit=_PAGE_FOR_EACH * len(wanted)).entries:
            if entry.service in wanted and entry.model in specs:
                found.setdefault(entry.service, entry)
    for service in wanted - found.keys():
        if (newest := _newest_of(releases, service, specs)) is not None:
            found[service] = newest
    return found


def _newest_of(releases: Releases, service: str, specs: Mapping[str, ModelSpec]) -> Entry | None:
    entry = releases.newest(service=service)
    # Another model of the same service and store, which this person may not see.
    if entry is not None and entry.model not in specs:
        models = [name for name, spec in specs.items() if spec.service.key == service]
        known = [found for name in models if (found := releases.newest(model=name, service=service)) is not None]
        return max(known, key=lambda one: one.cursor, default=None)
    return entry


def _row(key: str, members: list[ModelSpec], parts: Mapping[tuple[str, str], Part[Any]]) -> Json:
    service = members[0].service
    services, leases = parts["services", service.namespace], parts["leases", service.namespace]
    row = live.standing(
        (services.value or {}).get(service.name),
        (leases.value or {}).get(service.name),
        services.trouble,
        {spec.model for spec in members},
        (leases.value or {}).get(GUARD),
    )
    if services.trouble is None and leases.trouble is not None:
        row |= {"trouble": leases.trouble, "guard": None}
    stores = dict.fromkeys(spec.store for spec in members)
    entries = [entry for store in stores if (entry := (parts["newest", store].value or {}).get(key)) is not None]
    trouble = next((parts["newest", store].trouble for store in stores if parts["newest", store].trouble), None)
    last = max(entries, key=lambda entry: entry.cursor, default=None)
    row = live.with_last(row, last, trouble)
    return {"service": key, "models": sorted(spec.model for spec in members), **row, "verdict": None}


def _add_verdicts(sources: Sources, rows: list[Json], specs: Mapping[str, ModelSpec]) -> None:
    """What the judge said last of each release that runs."""
    running = [row for row in rows if row["last"] and row["last"]["running"]]
    reads: dict[str, Callable[[], Any]] = {
        row["service"]: partial(sources.releases(specs[row["last"]["model"]].store).record, row["last"]["release"])
        for row in running
        if row["last"]["model"] in specs
    }
    records = gather(reads)
    for row in running:
        part = records.get(row["service"])
        if part is None or part.value is None or not part.value.steps:
            continue
        verdict = part.value.steps[-1].get("verdict") or {}
        row["verdict"] = {**words.decision(verdict.get("decision")), "reason": words.passed(verdict.get("reason"))}


def _rank(row: Json) -> int:
    if row["canary"]:
        return 0
    if row["stage"]:
        return 1
    if row["state"]["tone"] in ("warn", "bad") or row["trouble"] or row["frozen"]:
        return 2
    return 3


def _counts(rows: list[Json]) -> Json:
    return {
        "services": len(rows),
        "canaries": sum(row["canary"] is not None for row in rows),
        "frozen": sum(row["frozen"] is not None for row in rows),
        "unknown": sum(row["state"]["name"] == "unknown" for row in rows),
        "not_ready": sum(row["state"]["name"] == "waking" for row in rows),
    }


def _troubles(parts: Mapping[tuple[str, str], Part[Any]]) -> list[str]:
    """One line for each thing that is down, however many reads it failed."""
    shown = {"services": "The cluster", "leases": "The leases", "newest": "The store"}
    first: dict[str, str] = {}
    failed: dict[str, int] = {}
    for (kind, name), part in parts.items():
        if part.trouble is not None:
            first.setdefault(kind, f"{shown[kind]} ({name}): {part.trouble}")
            failed[kind] = failed.get(kind, 0) + 1
    return [
        line if failed[kind] == 1 else f"{line} (and {failed[kind] - 1} more like it)" for kind, line in first.items()
    ]
