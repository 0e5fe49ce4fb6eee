"""What a release changes, against what it compares, and what it leaves: the words that all its verbs share.

A revision is named as the cluster names what takes traffic: Knative's revision or, in Standard mode, the Deployment and
Service of one predictor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from model_release.cluster.inference_service import STOP, InferenceService, Template

Remember = Callable[[str], None]
# Asks the ready revision at 0 %, through its tag address, what the version of the stable template should answer.
# Raises SmokeFailed when it does not.
Prove = Callable[[InferenceService], None]

# Seconds for which the restored template's revision may fail to load before waiting for it ends. Longer than a
# canary's: its content has served before, so the trouble is most likely the cluster's, and passes.
RESTORE_GRACE = 60.0

ANY = -1  # any share will do

# The way to any revision that a roll-back does not go to.
DIRECT = "to another version goes DAG release_MODEL with Version, Roll-out `direct` and a note"


class Novelty(StrEnum):
    """What a release would change."""

    FIRST = "first deployment"
    NEW = "new template"
    NOTHING = "nothing new"
    STAGED = "already staged"


@dataclass(frozen=True)
class Change:
    """What is left to do until the manifest's template is live, and the revision that already has it, if any."""

    kind: Novelty
    sentence: str
    revision: str | None = None


@dataclass(frozen=True)
class Baseline:
    """What served before the release touched anything. Recorded by the claim, kept in the lease, JSON-able.

    `revision` None: nothing had ever been rolled out. `uid` None: there was no InferenceService. `template` None:
    what was in the spec was not the serving revision's, and no lease remembered it; a roll-back then ends at 0 %.
    `created` is the revision that was the latest before, when the release will make another. `found` is the
    `template_digest` of what was in the spec, whoever's it was. `started`: `InferenceService.started`, with which the
    revision's name goes: None in a lease of an older edition, or where KServe does not say it.
    """

    uid: str | None = None
    revision: str | None = None
    template: Template | None = None
    storage_uri: str | None = None
    created: str | None = None
    percent: int | None = None
    found: str | None = None
    started: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Baseline:
        return cls(**given)


@dataclass(frozen=True)
class Canary:
    """What this release opened, and against what. Everything a look needs to know that it judges the right thing."""

    namespace: str
    name: str
    uid: str
    revision: str
    baseline: str | None  # None: the first deployment
    template: str  # InferenceService.template_digest
    started: str | None = None  # see Baseline

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Canary:
        return cls(**given)


def tell_traffic(live: InferenceService) -> str:
    """`…-00002 30 %, …-00001 70 %`."""
    return ", ".join(f"{name} {percent} %" for name, percent in live.serving.items()) or "none"


def tell_unmoved(live: InferenceService) -> str:
    """`traffic is still …-00002 30 %, …-00001 70 %`, or that only the gateway has to act."""
    if live.gateway is None and live.serving:
        return f"traffic {tell_traffic(live)} is asked for at the gateway, which has not said that it has it"
    return f"traffic is still {tell_traffic(live)}"


def tell_stopped(live: InferenceService, started: str | None) -> str:
    """A sentence when it is stopped, or was since `started`; nothing when its revisions are still those of that time.

    A stop deletes all revisions, and after the start their names count from 00001 again, with the InferenceService's
    uid as before: what has the baseline's name may be anything.
    """
    if live.is_stopped:
        return f"InferenceService {live.key} is stopped (annotation {STOP}){live.other_writer()}"
    if started is not None and live.started not in (None, started):
        return f"InferenceService {live.key} was stopped and started at {live.started}: its revisions are others"
    return ""
