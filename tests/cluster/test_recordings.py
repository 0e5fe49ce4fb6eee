"""No reader says too early that something has taken effect, by what the real controllers said (tests/data/real).

Each recording is fed, object by object, to the functions that say "staged", "split", "promoted" and "rolled back", as a
release would have asked them. What users get is known from the recorded gateway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.cluster.recordings import NAMES, Moment, moments
from tests.releases import left

from model_release.cluster import rollout
from model_release.cluster.change import Baseline, Canary
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.progress import State
from model_release.cluster.release import Release
from model_release.cluster.settle import assess_rolled_back, is_clean
from model_release.errors import ReleaseError

LATE = 2  # objects of the service after the gateway has it


@dataclass
class Question:
    """Something that a release waits for after a write."""

    what: str
    said: Callable[[InferenceService], bool]
    true: Callable[[Moment], bool]
    revision: str | None = None  # what it is about, when that is known: with another one, or a dead one, it is lost
    started: str | None = None  # of the service when it was asked: what was started since is another one
    since: int | None = None  # objects seen since it is true

    def due(self, moment: Moment) -> bool:
        live = moment.live
        if live is None or self.started not in (None, live.started) or not self.true(moment):
            return False
        alive = all(_is_ready(moment, revision) for revision in moment.acted or {})
        return self.revision is None or (live.latest_created == self.revision and alive)

    answered: bool = False


@dataclass
class Asker:
    """A release's way through a recording: what it would ask after each write that somebody made."""

    baseline: Baseline | None = None
    canary: Canary | None = None
    before: InferenceService | None = None
    asked: Question | None = None

    def hear(self, moment: Moment) -> Iterator[Question]:
        live, before = moment.live, self.before
        if live is None:
            self.asked = self.baseline = self.canary = self.before = None
            return
        if before is None or _spec(live) != _spec(before):
            if self.asked is not None:
                yield self.asked  # what it came to until the next write
            self.asked = self._after(live, before)
            if self.asked is not None:
                self.asked.started = live.started
        self.before = live

    def _after(self, live: InferenceService, before: InferenceService | None) -> Question | None:
        if before is None or (live.template != before.template and live.canary_percent == 0):
            if self.canary is not None and self.baseline is not None and live.template == self.baseline.template:
                return self._rolled_back()
            return self._staged(live, before)
        if self.baseline is None or self.canary is None:
            return None
        if live.template not in (before.template, self.baseline.template):
            return None
        percent = live.canary_percent
        if percent is None or percent == 100:
            return self._clean() if live.template == self.baseline.template else self._promoted()
        return self._split(percent) if percent else self._rolled_back()

    def _staged(self, live: InferenceService, before: InferenceService | None) -> Question | None:
        wanted = {"metadata": {"name": live.name, "namespace": live.namespace}, "spec": {"predictor": live.template}}
        if live.deployment_mode == "Standard":
            wanted["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Standard"}
        try:
            baseline = rollout.baseline_of(before, wanted, self.baseline)
        except ReleaseError:
            return None
        self.baseline, self.canary = baseline, None

        def said(live: InferenceService) -> bool:
            told = rollout.assess_staged(live, wanted, baseline)
            if told.state is State.READY:
                self.canary = rollout.canary_of(live, baseline)
            return told.state is State.READY

        def true(moment: Moment) -> bool:
            new = moment.live.latest_created if moment.live else None
            if new is None or new in (baseline.revision, baseline.created) or not _is_ready(moment, new):
                return False
            return moment.acted == {baseline.revision or new: 100}

        return Question("staged", said, true)

    def _split(self, percent: int) -> Question | None:
        canary = self.canary
        if canary is None or canary.baseline is None:
            return None
        return Question(
            "split",
            lambda live: rollout.assess_split(live, canary, percent).state is State.READY,
            lambda moment: moment.acted == {canary.revision: percent, canary.baseline: 100 - percent},
            canary.revision,
        )

    def _promoted(self) -> Question | None:
        canary = self.canary
        return canary and Question(
            "promoted",
            lambda live: rollout.assess_promoted(live, canary).state is State.READY,
            lambda moment: moment.acted == {canary.revision: 100},
            canary.revision,
        )

    def _release(self) -> Release:
        assert self.baseline is not None
        assert self.canary is not None
        return left(self.canary.namespace, self.canary.name, self.baseline, self.canary.revision)

    def _rolled_back(self) -> Question:
        release = self._release()
        return Question(
            "rolled back",
            lambda live: assess_rolled_back(live, release).state is State.READY,
            lambda moment: moment.acted == {release.baseline.revision: 100},
        )

    def _clean(self) -> Question:
        release = self._release()
        return Question(
            "clean",
            lambda live: is_clean(live, release),
            lambda moment: (
                moment.live is not None
                and moment.live.canary_percent is None
                and moment.acted == {moment.live.latest_created: 100}
                and moment.live.latest_created != release.canary
            ),
        )


def _spec(live: InferenceService) -> tuple[Any, ...]:
    return live.uid, live.template_digest, live.canary_percent


def _is_ready(moment: Moment, revision: str) -> bool:
    return moment.ready.get(revision, False) or (moment.live is not None and moment.live.deployment_mode == "Standard")


def asked_in(name: str) -> Counter[str]:
    """How many questions of each kind a recording came to, each looked at with every object."""
    asker, told = Asker(), Counter[str]()
    for moment in moments(name):
        for over in asker.hear(moment):
            told[over.what] += over.answered
        question = asker.asked
        if question is None or moment.live is None:
            continue
        said, true = question.said(moment.live), question.true(moment)
        where = f"{name} at {moment.t} s: {question.what}"
        assert not (said and not true), f"{where}: said, and the gateway has {moment.acted}"
        question.since = (question.since or 0) + 1 if question.due(moment) else None
        question.answered |= said
        assert said or question.since is None or question.since <= LATE, f"{where}: true and not said"
    if asker.asked is not None:
        told[asker.asked.what] += asker.asked.answered
    return told


# What each recording must have come to, so that none passes by asking nothing.
COMES_TO: dict[str, dict[str, int]] = {
    "another-hand": {"staged": 2, "split": 1},
    "crash": {"staged": 2, "split": 1, "rolled back": 1},
    "crash-freed": {"staged": 2, "split": 1, "rolled back": 2, "clean": 1},
    "crash-restored": {"staged": 2, "split": 1, "rolled back": 1, "clean": 1},
    "download-fails": {"staged": 2, "split": 1},
    "ingress-away": {"staged": 2, "split": 1, "rolled back": 1},
    "knative-away": {"staged": 2, "split": 1, "rolled back": 1},
    "made-anew": {"staged": 4},
    "never-ready": {"staged": 3},
    "promote": {"staged": 2, "split": 1, "promoted": 2},
    "refused": {"staged": 2},
    "replicas-at-promotion": {"staged": 2, "split": 1},
    "rollback": {"staged": 2, "split": 1, "rolled back": 2, "clean": 1},
    "stable-crashes": {"staged": 2, "split": 1, "rolled back": 1},
    "stable-crashes-promoted": {"staged": 2, "split": 1, "promoted": 1},
    "standard-crash": {"staged": 2, "split": 1, "rolled back": 1, "clean": 1},
    "standard-download-fails": {"staged": 2},
    "standard-promote": {"staged": 2, "split": 1, "promoted": 1},
    "standard-refused": {"staged": 1},
    "standard-rollback": {"staged": 2, "split": 1, "rolled back": 1, "clean": 1},
    "standard-stable-crashes": {"staged": 2, "split": 1, "rolled back": 1},
    "standard-stopped": {"staged": 2, "split": 1},
    "stopped": {"staged": 2, "promoted": 1},
    "tag-routing": {"staged": 2, "split": 1, "promoted": 1},
    "webhook-away": {"staged": 2, "split": 1},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_said_when_the_gateway_has_it_and_not_before(name: str) -> None:
    assert {what: count for what, count in asked_in(name).items() if count} == COMES_TO[name]
