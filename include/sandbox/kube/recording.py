"""Recordings of the real controllers: what was done to a cluster, and all that a watch told of it.

The format and where they come from: tests/data/real/README.md.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.interfaces import Manifest

INDEX = "recorded.json"
# What this sandbox stands in for; a recording of something else would be held against the wrong rules.
VERSIONS = {"kubernetes": "1.34.4", "knative": "98e5ef90aa", "kserve": "aaac4e294"}
FORMAT = 1
API_VERSION = "serving.kserve.io/v1beta1"

_ACTIONS: dict[str, tuple[str, ...]] = {
    "write": ("said", "answer"),
    "pods": ("version", "become"),
    "delete": (),
    "delete Revision": ("name", "answer"),
    "note": ("text",),
}
_KINDS = ("InferenceService", "KnativeService", "Revision", "Ingress", "Deployment", "HTTPRoute", "Event")
_TYPES = ("ADDED", "MODIFIED", "DELETED")
# A watch may tell of a write before the answer to it has arrived: so many seconds at most.
_AHEAD = 0.1


class BadRecording(Exception):
    """A file that is no whole recording of the expected version; the text names the file and what is wrong."""


@dataclass(frozen=True)
class Told:
    """One line of a watch."""

    at: float  # seconds since the scenario began
    kind: str
    type: str  # ADDED, MODIFIED or DELETED
    object: Manifest

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])


@dataclass
class Step:
    """One thing that was done, and what the watch told from then until the next."""

    at: float
    action: str  # write, pods, delete, delete Revision or note
    said: Manifest  # the action's own fields
    told: list[Told] = field(default_factory=list)


@dataclass(frozen=True)
class Recording:
    scenario: str
    about: str
    steps: tuple[Step, ...]

    def settled(self) -> Iterator[tuple[Step, dict[tuple[str, str], Manifest]]]:
        """Each step with the objects as they were before the next one, by kind and name."""
        objects: dict[tuple[str, str], Manifest] = {}
        for step in self.steps:
            for one in (told for told in step.told if told.kind != "Event"):
                if one.type == "DELETED":
                    objects.pop((one.kind, one.name), None)
                else:
                    objects[one.kind, one.name] = one.object
            yield step, dict(objects)


def names(folder: Path) -> list[str]:
    """The files that belong in a folder of recordings. Raises BadRecording when its index is of another version."""
    index = _index(folder)
    return sorted(index["events"])


def load(path: Path) -> Recording:
    """Read one recording. Raises BadRecording, by name, for one that is cut, or of another version or shape."""
    index = _index(path.parent)
    said = _read(path)
    if not isinstance(said, dict) or not isinstance(events := said.get("events"), list) or "scenario" not in said:
        raise BadRecording(f"{path.name}: no recording: an object with scenario, about and events is one")
    expected = index["events"].get(path.name)
    if expected is None:
        raise BadRecording(f"{path.name}: {INDEX} beside it does not know this recording")
    if len(events) != expected:
        raise BadRecording(f"{path.name}: cut: {len(events)} events, {INDEX} counts {expected}")
    steps: list[Step] = []
    ahead: list[Told] = []  # told before anything was done
    for number, event in enumerate(events):
        where = f"{path.name}: events[{number}]"
        if "action" in event:
            step = _step(event, where)
            told = steps[-1].told if steps else ahead
            _move(told, step)
            steps.append(step)
        elif steps:
            steps[-1].told.append(_told(event, where))
        else:
            ahead.append(_told(event, where))
    if not steps or ahead:
        raise BadRecording(f"{path.name}: it begins with no action")
    return Recording(str(said["scenario"]), str(said.get("about", "")), tuple(steps))


def _index(folder: Path) -> Manifest:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        version, recorded, events = index["format"], index["versions"], index["events"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRecording(f"{path}: not the index of recordings: {error!r}") from error
    if version != FORMAT or recorded != VERSIONS:
        raise BadRecording(
            f"{path}: recorded with {recorded} in format {version}; expected are {VERSIONS} in format {FORMAT}"
        )
    return {"events": events}


def _read(path: Path) -> Any:
    try:
        return json.loads(gzip.decompress(path.read_bytes()))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecording(f"{path.name}: cut, or no gzip: {error}") from error
    except ValueError as error:
        raise BadRecording(f"{path.name}: cut, or no JSON: {error}") from error


def _step(event: Manifest, where: str) -> Step:
    action = event["action"]
    if action not in _ACTIONS:
        raise BadRecording(f"{where}: of another version: the action {action!r} is none of {', '.join(_ACTIONS)}")
    missing = [key for key in ("t", *_ACTIONS[action]) if key not in event]
    if missing:
        raise BadRecording(f"{where}: of another version: {action} without {', '.join(missing)}")
    return Step(event["t"], action, {k: v for k, v in event.items() if k not in ("t", "action")})


def _told(event: Manifest, where: str) -> Told:
    try:
        told = Told(event["t"], event["kind"], event["type"], event["object"])
        if told.kind != "Event":
            str(told.object["metadata"]["name"])
    except (KeyError, TypeError) as error:
        raise BadRecording(f"{where}: of another version: no {error} in what the watch told") from error
    if told.kind not in _KINDS or told.type not in _TYPES:
        raise BadRecording(f"{where}: of another version: {told.type} {told.kind} is not known")
    said = told.object.get("apiVersion")
    if told.kind == "InferenceService" and said != API_VERSION:
        raise BadRecording(f"{where}: of another version: the InferenceService is {said}, not {API_VERSION}")
    return told


def _move(told: list[Told], step: Step) -> None:
    """What the watch told of a write or of a deletion before its answer belongs to that."""
    if step.action not in ("write", "delete"):
        return
    known = [one for one in told if one.kind == "InferenceService" and one.at < step.at - _AHEAD]
    generation = known[-1].object["metadata"]["generation"] if known else 0
    early = [
        one
        for one in told
        if one.kind == "InferenceService"
        and one.at >= step.at - _AHEAD
        and one.object["metadata"]["generation"] > generation
    ]
    for one in early:
        told.remove(one)
        step.told.append(one)
