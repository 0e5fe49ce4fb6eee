"""What comes next for a canary: one pure function of what its release has recorded and what is true outside.

    advance(release, world, rules) -> the release as it is to be recorded, and one action

Everything that may happen to an open canary is a branch here and a row in tests/release/test_advance.py. Nothing here
reads or writes: `drive` does, and may be killed between any two lines, since what is recorded comes before what is
done and each action may be done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from model_release.cluster.change import Canary
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.progress import State
from model_release.cluster.release import Cause, Phase, Release, Watched
from model_release.cluster.rollout import assess_promoted, assess_split, check_untouched, death_of
from model_release.cluster.settle import assess_rolled_back
from model_release.errors import CanaryLost

Judged = Literal["promote", "open", "rollback", "continue", "inconclusive"]
Asks = Literal["never", "before_promote", "on_inconclusive"]


@dataclass(frozen=True)
class Rules:
    """What the model file says about the way. `answer_within` is for the sentence when nobody answered.

    `steps`: the shares that are known beforehand. Of a ramp, which has none, `ramp_from` is the first, and the judge
    says the others.
    """

    steps: tuple[int, ...]
    asks: Asks = "never"
    answer_within: str = ""
    ramp_from: int = 1

    @property
    def first(self) -> int:
        """The share to begin with."""
        return self.steps[0] if self.steps else self.ramp_from

    def after(self, percent: int) -> int | None:
        """The share after this one; None after the last."""
        return next((step for step in self.steps if step > percent), None)

    def asks_on(self, judged: Judged, percent: int) -> bool:
        """Whether a person decides what the judge has said at this share."""
        if self.asks == "before_promote":
            return judged == "promote" and self.after(percent) is None
        return self.asks == "on_inconclusive" and judged == "inconclusive"


@dataclass(frozen=True)
class World:
    """What is true at this moment.

    Attributes:
        judged: the judge's word on the windows of the whole canary; `inconclusive` only when no more windows come.
        reason: its sentence.
        share: in percent, with `open`: what the canary may have now.
        windows: how many of the stretch that is under way were judged.
        confidence: of a promotion at the deadline, where it is less than usual.
        extended: the deadline came, and as much time again is to decide.
        blind: what kept the watch from looking when it had to end; nothing, when it just came to its end.
        no_data: some figure that the judge needs was not to be had.
        stuck: what was asked for has not reached the gateway in time; its sentence.
    """

    live: InferenceService | None
    now: str
    judged: Judged = "continue"
    reason: str = ""
    share: int | None = None
    windows: int | None = None
    confidence: float | None = None
    extended: bool = False
    blind: str = ""
    no_data: bool = False
    stuck: str | None = None


@dataclass(frozen=True)
class Look:
    """Nothing to do but look again."""


@dataclass(frozen=True)
class Shift:
    """Give the canary this share of the traffic, and look whether the gateway has it."""

    percent: int


@dataclass(frozen=True)
class Opened:
    """The gateway has the share: the windows begin."""

    percent: int


@dataclass(frozen=True)
class Promote:
    """Give the canary everything. `percent` is the share at which it was judged."""

    percent: int


@dataclass(frozen=True)
class TakeBack:
    """Take the canary's traffic away, again until the gateway has it."""


@dataclass(frozen=True)
class Done:
    """The drive is over. `ask`: a person decides; the canary stays open, and the next drive looks at it."""

    decision: Literal["promote", "rollback", "ask", "baked"]
    reason: str


Action = Look | Shift | Opened | Promote | TakeBack | Done


def advance(release: Release, canary: Canary, world: World, rules: Rules) -> tuple[Release, Action]:
    """The next thing to do for this canary, and what is to be recorded before it is done.

    Asked again in the same world after it was done, it says to look, or the same once more, which then does no harm.
    """
    if release.trouble is not None and not _is_ordered(release, canary):
        return release, Done("rollback", release.trouble)  # its run has failed and settles it: this hand lets go
    if release.order is not None and release.order.kind == "roll_back":
        release = release.close(str(release.order), Cause.PERSON)
    if release.closed is None and release.watches and (dead := death_of(world.live, canary.revision)):
        release = release.close(dead, Cause.DEAD)  # no statistics: nobody is to meet it for one window more
    if release.closed is not None:
        return _taken_back(release, world)
    if release.phase is Phase.BAKING:
        return _baking(release, canary, world)
    stretch = release.watches[-1] if release.watches else Watched(rules.first)
    percent = stretch.percent or 0
    if _is_ordered(release, canary) and not release.promoted:
        release = replace(release, phase=Phase.PROMOTED, word=str(release.order))
    if release.promoted:
        return _promoting(release, canary, percent, world)
    if stretch.opened_at is None:
        return _opening(release, canary, percent, world)
    return _watching(release, canary, stretch, percent, world, rules)


def ask(release: Release, now: str, why: str) -> Release:
    """A person is asked from now on, and why; the canary is looked at meanwhile, at the share that it has."""
    asked = _next(release, release.watches[-1].percent, now, opened_at=now, beside_question=True)
    return replace(asked, watches=(*asked.watches[:-1], replace(asked.watches[-1], why=why)))


def watch_longer(release: Release, now: str) -> Release:
    """A person wants to see more, at the share that the canary has."""
    return _next(release, release.watches[-1].percent, now, opened_at=now)


def go_on(release: Release, now: str, rules: Rules, why: str) -> Release:
    """The canary may have more, and why: the next of the shares that are known or, after the last, all of the
    traffic."""
    percent = release.watches[-1].percent
    after = None if percent is None else rules.after(percent)
    if after is None:
        return replace(release, phase=Phase.PROMOTED, word=why)
    return _next(release, after, now)


def bake(release: Release) -> Release:
    """The promoted canary is watched on, alone. Again: the bake that began goes on."""
    if release.phase is Phase.BAKING or release.promoted_at is None:
        return release
    baked = _next(release, None, release.promoted_at, opened_at=release.promoted_at)
    return replace(baked, phase=Phase.BAKING)


def _next(
    release: Release, percent: int | None, now: str, *, opened_at: str | None = None, beside_question: bool = False
) -> Release:
    """The stretch under way ends now, and another begins. Further stretches at one share are numbered."""
    over = [replace(one, until=one.until or now) for one in release.watches]
    again = sum(one.percent == percent for one in over if one.beside_question == beside_question)
    again += beside_question
    begun = Watched(percent, opened_at, beside_question=beside_question, again=again)
    return replace(release, phase=Phase.OPEN, watches=(*over, begun))


def _noted(release: Release, **said: Any) -> Release:
    """The stretch that is under way, with what the judge has said."""
    return replace(release, watches=(*release.watches[:-1], replace(release.watches[-1], **said)))


def _taken_back(release: Release, world: World) -> tuple[Release, Action]:
    why = release.closed or ""
    if release.baseline is None:
        return release, Done("rollback", why)
    progress = assess_rolled_back(world.live, release)
    if progress.state is State.READY:
        return replace(release, phase=Phase.RESTORED), Done("rollback", why)
    if progress.state is State.LOST:
        return release, Done("rollback", why if progress.sentence in why else f"{why} ({progress.sentence})")
    return release, TakeBack()


def _opening(release: Release, canary: Canary, percent: int, world: World) -> tuple[Release, Action]:
    try:
        check_untouched(world.live, canary)
    except CanaryLost as lost:
        return release.close(str(lost), Cause.CHANGED), TakeBack()
    if not release.watches:
        release = _next(release, percent, world.now)
    progress = assess_split(world.live, canary, percent)
    if progress.state is State.READY:
        begun = replace(release.watches[-1], opened_at=world.now)
        return replace(release, watches=(*release.watches[:-1], begun)), Opened(percent)
    if world.stuck is not None:
        return release.close(world.stuck, Cause.STUCK), TakeBack()
    return release, Shift(percent)


def _watching(
    release: Release, canary: Canary, stretch: Watched, percent: int, world: World, rules: Rules
) -> tuple[Release, Action]:
    try:
        check_untouched(world.live, canary, percent)
    except CanaryLost as lost:
        return release.close(str(lost), Cause.CHANGED), TakeBack()
    if world.judged == "continue":
        return _noted(release, extended=stretch.extended or world.extended), Look()
    if world.judged == "rollback":
        return release.close(world.reason, Cause.EVIDENCE), TakeBack()
    if world.judged == "open" and (stretch.beside_question or world.share is None or world.share <= percent):
        return release, Look()
    # Whoever judges later takes in the same windows.
    release = _noted(release, windows=world.windows, confidence=world.confidence)
    if world.judged == "open" and world.share is not None:
        return _next(release, world.share, world.now), Shift(world.share)
    undecided = Cause.NO_DATA if world.blind or world.no_data else Cause.DEADLINE
    if stretch.beside_question:
        # These windows may stop the canary and never promote it: what ends them is silence.
        silence = f"Nobody answered within {rules.answer_within}: rolled back."
        return release.close(f"Not watched: {world.reason}" if world.blind else silence, undecided), TakeBack()
    if rules.asks_on(world.judged, percent):
        return release, Done("ask", world.reason)
    if world.judged == "inconclusive":
        return release.close(world.reason, undecided), TakeBack()
    release = go_on(release, world.now, rules, world.reason)
    if release.promoted:
        return release, Promote(percent)
    return release, Shift(release.percent or 0)


def _promoting(release: Release, canary: Canary, percent: int, world: World) -> tuple[Release, Action]:
    found = None if world.live is None else world.live.canary_percent
    written = world.live is not None and found in (None, 100)
    if not written and _is_ordered(release, canary) and found in [one.percent for one in release.watches[-2:]]:
        percent = found or 0  # an order may overtake a share that another hand has recorded and not written yet
    try:
        check_untouched(world.live, canary, None if written else percent)
    except CanaryLost as lost:
        return release.close(str(lost), Cause.CHANGED), TakeBack()
    if written and assess_promoted(world.live, canary).state is State.READY:
        if release.promoted_at is None:
            release = replace(release, promoted_at=world.now)
        return release, Done("promote", release.word or "")
    return release, Promote(percent)


def _baking(release: Release, canary: Canary, world: World) -> tuple[Release, Action]:
    try:
        check_untouched(world.live, canary, None)
    except CanaryLost as lost:
        return release.close(str(lost), Cause.CHANGED), TakeBack()
    if world.judged == "rollback":
        return release.close(world.reason, Cause.EVIDENCE), TakeBack()
    if world.judged == "continue":
        return release, Look()
    return release, Done("baked", world.reason)


def _is_ordered(release: Release, canary: Canary) -> bool:
    """Whether a person has ordered the promotion of this very canary: a run that was cleared may have staged another
    one since."""
    return release.order is not None and release.order.kind == "promote" and release.order.revision == canary.revision
