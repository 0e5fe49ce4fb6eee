"""The versions of a model with what became of each: source, evaluation, fate, traffic now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from model_release.release.index import Entry

if TYPE_CHECKING:
    from model_release.store.store import Version

FATES = {
    None: "being released",
    "promoted": "promoted",
    "first": "promoted, the first",
    "rolled_back": "rolled back",
    "inconclusive": "rolled back, undecided",
    "failed": "failed",
    "published": "published",
    "nothing_new": "published",
}
NEVER = "never released"
# These say nothing of how the version did: it was built, or it was live already.
_QUIET = ("published", "nothing_new")


@dataclass(frozen=True)
class Line:
    """One version in a list."""

    version: str
    time: str  # ISO 8601, UTC
    source: str
    evaluation: dict[str, Any] | None
    fate: str
    release: str | None  # the release that decided its fate
    traffic: int | None  # percent; None: unknown

    @property
    def accuracy(self) -> float | None:
        return (self.evaluation or {}).get("accuracy")


def lines(
    versions: Iterable[Version], entries: Iterable[Entry], traffic: Mapping[str, int] | str, *, model: str
) -> list[Line]:
    """The versions of `model`, in the order given. `entries` are the store's, newest first; `traffic` as
    `live.traffic` gives it, text for "unknown"."""
    deciding: dict[str, Entry] = {}
    for entry in entries:
        if entry.version is None:
            continue
        known = deciding.get(entry.version)
        if known is None or (known.outcome in _QUIET and entry.outcome not in _QUIET):
            deciding[entry.version] = entry
    return [
        _line(version, deciding.get(version.name), traffic)
        for version in versions
        if version.metadata.get("model", model) == model
    ]


def source_of(metadata: Mapping[str, Any]) -> str:
    """Where a version came from, in one line: origin, candidate, commit."""
    source = metadata.get("source")
    if not isinstance(source, Mapping):
        return str(source or "unknown")
    commit = str(source.get("commit") or "")[:12]
    parts = (source.get("origin"), source.get("candidate"), commit)
    return " ".join(str(part) for part in parts if part) or "unknown"


def _line(version: Version, entry: Entry | None, traffic: Mapping[str, int] | str) -> Line:
    percent = None if isinstance(traffic, str) else traffic.get(version.name, 0)
    if entry is not None and entry.outcome is None:
        fate = FATES[None]
    elif percent:
        fate = "live"
    else:
        fate = NEVER if entry is None else FATES.get(entry.outcome, str(entry.outcome))
    evaluation = version.metadata.get("evaluation")
    return Line(
        version=version.name,
        time=version.time.astimezone(UTC).isoformat(timespec="seconds"),
        source=source_of(version.metadata),
        evaluation=dict(evaluation) if isinstance(evaluation, Mapping) else None,
        fate=fate,
        release=entry.release if entry else None,
        traffic=percent,
    )
