"""What an MLflow registry is told of the releases of its models: tags on the version, and the alias of `on_promotion`.

A release never waits for a registry. What is to be said is kept in the store, `registry/<model>.json`, before it is
said; what could not be said is said by the next release of the model or by the sweep, whichever comes first. The
document holds what the registry should say, and not what happened: said twice or by two hands at once, it says the
same, and an older release never takes the place of a newer one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from typing import TYPE_CHECKING, Any

from model_release.errors import CheckpointError, ReleaseError, SpecError, StoreContested
from model_release.spec import ModelSpec
from model_release.tasks import connections

if TYPE_CHECKING:
    from model_release.build.registry import Registry
    from model_release.judging.record import Record

_PREFIX = "model_release."
_LIVE = ("promoted", "first")
_ENDS = (*_LIVE, "rolled_back", "failed")
_TRIES = 5  # each lost race is another task, or the sweep, that wrote
_LONGEST = 5_000  # characters of a tag: what every edition of MLflow takes
_KEPT = 50  # versions in the document: what an older release says of one of them is told from what a newer one says
_log = logging.getLogger(__name__)


def note(spec: ModelSpec, record: Record, page: str) -> None:
    """Tells the registry how the release stands, by its record; `page` is where people see it. Again: the same.

    Nothing where the model is of no registry, or the release has come to nothing that a version should bear. Raises the
    store's errors; a registry that is away is a line in the log.
    """
    if spec.source.mlflow is None or record.outcome not in _ENDS or (version := _released(record)) is None:
        return
    said = {
        "outcome": str(record.outcome),
        "why": record.reason,
        "version": record.version or "",
        "service": record.service,
        "release": record.release,
        "link": page,
    }
    _change(spec, lambda kept: _noted(kept, spec.source.on_promotion, version, said, _ended(record)))
    write(spec)


def note_by_hand(spec: ModelSpec, record: Record, page: str) -> None:
    """Tells the registry that a person took back what the last release had promoted; `record` is that of the person's
    own run. As `note` otherwise."""
    if spec.source.mlflow is None:
        return

    def take_back(kept: dict[str, Any]) -> None:
        decided = [one for one in kept["tags"].values() if one["said"]["outcome"] in (*_LIVE, "rolled_back")]
        last = max(decided, key=lambda one: datetime.fromisoformat(one["ended"]), default=None)
        if last is not None and last["said"]["outcome"] in _LIVE:
            said = {**last["said"], "outcome": "rolled_back", "why": record.reason, "link": page}
            version = {name: last[name] for name in ("name", "version", "source")}
            _noted(kept, spec.source.on_promotion, version, said, _ended(record))

    _change(spec, take_back)
    write(spec)


def write(spec: ModelSpec) -> None:
    """Says to the registry what it was not told yet. For the sweep, too: one small document is read where all is said.
    Never raises a trouble of the registry's."""
    if spec.source.mlflow is None:
        return
    store, key = connections.store(spec.store), _place(spec)
    overtaken: list[str] = []
    for _ in range(_TRIES):
        kept, tag = store.read_json(key)
        if kept is None:
            return
        # What this hand said while another one wrote may stand over a newer word, which is said again.
        for one in (*(kept["tags"].get(name) for name in overtaken), kept["alias"] if overtaken else None):
            if one is not None:
                one["told"] = False
        if not (_unsaid(kept) or _unmoved(kept)):
            return
        said = [_key(one) for one in _unsaid(kept)] + [_key(one) for one in filter(None, [_unmoved(kept)])]
        before, whole = deepcopy(kept), True
        try:
            registry = connections.mlflow()
            # Where the alias stands is kept before it is moved: for a late roll-back, whatever happens in between.
            if not _know_before(registry, kept):
                whole = _say(registry, kept)
        except ReleaseError as error:
            _log.warning("%s is not told how its release ended; the sweep tries again: %s", spec.source, error)
            return
        if kept == before:
            return
        try:
            store.write_json(key, kept, if_match=tag)
            overtaken = []
        except StoreContested:
            overtaken = said
        else:
            if not whole:
                return


def _noted(kept: dict[str, Any], alias: str | None, version: dict[str, Any], said: dict[str, str], ended: str) -> None:
    """Into the document how a release of `version` stands."""
    key, last, stands = _key(version), kept["tags"].get(_key(version)), kept["alias"]
    if last is None or not _later(last["ended"], ended):
        new = {**version, "said": said, "ended": ended, "told": False}
        if last is None or {**last, "told": False} != new:
            kept["tags"][key] = new
    same = stands is not None and stands["release"] == said["release"]
    if said["outcome"] in _LIVE and alias is not None and not same:
        if stands is None or not _later(stands["ended"], ended):
            moved = {**version, "alias": alias, "to": version["version"], "release": said["release"]}
            kept["alias"] = {**moved, "ended": ended, "told": False}
            if stands is not None and not stands["told"]:
                kept["alias"]["before"] = stands["to"]
    elif said["outcome"] == "rolled_back" and same and stands["to"] == stands["version"]:
        # One that was never moved stays where it is.
        back = {**stands, "ended": ended, "told": False, "moved": stands["told"]}
        kept["alias"] = {**back, "to": stands["before"]} if "before" in stands else None


def _know_before(registry: Registry, kept: dict[str, Any]) -> bool:
    """Notes where the alias stands, where it is to be moved and that is not known; says whether it did."""
    stands = _unmoved(kept)
    if stands is None or "before" in stands:
        return False
    found = registry.at(stands["name"], stands["alias"])
    stands["before"] = found.version if found and found.version != stands["version"] else None
    return True


def _say(registry: Registry, kept: dict[str, Any]) -> bool:
    """Whether all of it was taken. What is refused keeps nothing else waiting."""
    whole = True
    for one in _unsaid(kept):
        try:
            found = registry.version(one["name"], one["version"])
            if found is None or found.source != one["source"]:
                _log.warning("models:/%s is gone, and is told nothing", _key(one))
            else:
                registry.tag(found, {_PREFIX + name: value[:_LONGEST] for name, value in one["said"].items() if value})
            one["told"] = True
        except CheckpointError as error:
            _log.warning("models:/%s is not told how its release ended; the sweep tries again: %s", _key(one), error)
            whole = False
    if stands := _unmoved(kept):
        to = stands["to"]
        found = registry.version(stands["name"], to) if to is not None else None
        moved = bool(stands.get("moved"))  # to the version that was promoted, from where it goes back now
        there = registry.at(stands["name"], stands["alias"]) if moved else None
        if moved and (there is None or there.version != stands["version"]):
            _log.warning("%s of models:/%s was moved by another hand, and stays there", stands["alias"], stands["name"])
        elif to is not None and (found is None or (to == stands["version"] and found.source != stands["source"])):
            _log.warning("models:/%s/%s is gone; %s stays where it is", stands["name"], to, stands["alias"])
        else:
            registry.move(stands["name"], stands["alias"], to)
        stands["told"] = True
    newest = sorted(kept["tags"].items(), key=lambda item: datetime.fromisoformat(item[1]["ended"]))[-_KEPT:]
    kept["tags"] = dict(newest)
    return whole


def _unsaid(kept: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in kept["tags"].values() if not one["told"]]


def _unmoved(kept: dict[str, Any]) -> dict[str, Any] | None:
    stands: dict[str, Any] | None = kept["alias"]
    return stands if stands and not stands["told"] else None


def _change(spec: ModelSpec, edit: Callable[[dict[str, Any]], None]) -> None:
    store, key = connections.store(spec.store), _place(spec)
    for left in reversed(range(_TRIES)):
        before, tag = store.read_json(key)
        kept = deepcopy(before) if before else {"tags": {}, "alias": None}
        edit(kept)
        if kept == before:
            return
        try:
            store.write_json(key, kept, if_match=tag)
            return
        except StoreContested:
            if not left:
                raise


def _released(record: Record) -> dict[str, Any] | None:
    """The version of a registry that was released; None for one of another source."""
    from model_release.build.registry import split

    source = record.source or {}
    try:
        name, _, version = split(str(source.get("origin")))
    except SpecError:
        return None
    return {"name": name, "version": version, "source": source.get("commit")}


def _place(spec: ModelSpec) -> str:
    return f"registry/{spec.model}.json"


def _key(version: dict[str, Any]) -> str:
    return f"{version['name']}/{version['version']}"


def _ended(record: Record) -> str:
    return record.ended or record.started


def _later(one: str, other: str) -> bool:
    return datetime.fromisoformat(one) > datetime.fromisoformat(other)
