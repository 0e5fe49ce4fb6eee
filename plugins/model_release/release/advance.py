"""What comes next for a canary: one pure function of what its release has recorded and what is true outside.

    advance(claim, world, rules) -> the claim as it is to be recorded, and one action

Everything that may happen to an open canary is a branch here and a row in tests/release/test_advance.py. Nothing here
reads or writes: `drive` does, and may be killed between any two lines, since what is recorded comes before what is
done and each action may be done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model_release.cluster.dead import death_of
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Claim, Watched
from model_release.cluster.progress import State
from model_release.cluster.rollout import Canary, assess_promoted, assess_split, check_untouched
from model_release.cluster.settle import assess_rolled_back
from model_release.errors import CanaryLost

Judged = Literal["promote", "rollback", "continue", "inconclusive"]
Asks = Literal["never", "before_promote", "on_inconclusive"]

PROMOTED = "promote"  # the stage of a claim whose canary has all of the traffic, by name


@dataclass(frozen=True)
class Rules:
    """What the model file says about the way. `answer_within` is for the sentence when nobody answered."""

    steps: tuple[int, ...]
    asks: Asks = "never"
    answer_within: str = ""

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
        judged: the judge's word on the windows of the stretch that is under way; `inconclusive` only when no more
            windows come.
        reason: its sentence.
        blind: what kept the watch from looking when it had to end; nothing, when it just came to its end.
        stuck: what was asked for has not reached the gateway in time; its sentence.
    """

    live: InferenceService | None
    now: str
    judged: Judged = "continue"
    reason: str = ""
    blind: str = ""
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


def advance(claim: Claim, canary: Canary, world: World, rules: Rules) -> tuple[Claim, Action]:
    """The next thing to do for this canary, and what is to be recorded before it is done.

    Asked again in the same world after it was done, it says to look, or the same once more, which then does no harm.
    """
    if claim.order is not None and claim.order.kind == "roll_back":
        claim = close(claim, str(claim.order))
    if claim.closed is None and claim.watches and (dead := death_of(world.live, canary.revision)):
        claim = close(claim, dead)  # no statistics: nobody is to meet it for one window more
    if claim.closed is not None:
        return _taken_back(claim, canary, world)
    stretch = claim.watches[-1] if claim.watches else Watched(rules.steps[0])
    percent = stretch.percent
    if percent is None:
        return _baking(claim, canary, world)
    if _is_ordered(claim, canary):
        claim = replace(claim, promoted=True, proven=str(claim.order))
    if claim.promoted:
        return _promoting(claim, canary, percent, world)
    if stretch.opened_at is None:
        return _opening(claim, canary, percent, world)
    return _watching(claim, canary, stretch, percent, world, rules)


def close(claim: Claim, why: str) -> Claim:
    """The canary's traffic is to be taken back. The first word about it stands.

    It counts as promoted no more: whoever settles what a crash leaves behind must not finish that.
    """
    return claim if claim.closed is not None else replace(claim, closed=why, promoted=False, stage="rolling back")


def ask(claim: Claim, now: str, why: str) -> Claim:
    """A person is asked from now on, and why; the canary is looked at meanwhile, at the share that it has."""
    asked = _next(claim, claim.watches[-1].percent, now, opened_at=now, beside_question=True)
    return replace(asked, watches=(*asked.watches[:-1], replace(asked.watches[-1], why=why)))


def watch_longer(claim: Claim, now: str) -> Claim:
    """A person wants to see more, at the share that the canary has."""
    return _next(claim, claim.watches[-1].percent, now, opened_at=now)


def go_on(claim: Claim, now: str, rules: Rules, why: str) -> Claim:
    """The canary may have more, and why: the next share or, after the last, all of the traffic."""
    percent = claim.watches[-1].percent
    after = None if percent is None else rules.after(percent)
    if after is None:
        return replace(claim, promoted=True, proven=why, stage="promoting")
    return _next(claim, after, now)


def bake(claim: Claim, promoted_at: str) -> Claim:
    """The promoted canary is watched on, alone. Again: the bake that began goes on."""
    if claim.watches and claim.watches[-1].percent is None:
        return claim
    return _next(claim, None, promoted_at, opened_at=promoted_at)


def _next(
    claim: Claim, percent: int | None, now: str, *, opened_at: str | None = None, beside_question: bool = False
) -> Claim:
    """The stretch under way ends now, and another begins. Stretches at one share are numbered: each has a smaller part
    of the allowance for false roll-backs than the one before."""
    over = [replace(one, until=one.until or now) for one in claim.watches]
    again = sum(one.percent == percent for one in over if one.beside_question == beside_question)
    again += beside_question
    begun = Watched(percent, opened_at, beside_question=beside_question, again=again)
    stage = claim.stage if percent is None else f"open at {percent} %"
    return replace(claim, watches=(*over, begun), percent=percent, opened_at=opened_at, stage=stage)


def _taken_back(claim: Claim, canary: Canary, world: World) -> tuple[Claim, Action]:
    release, why = claim.as_release(canary.namespace, canary.name), claim.closed or ""
    if release is None:
        return claim, Done("rollback", why)
    progress = assess_rolled_back(world.live, release)
    if progress.state is State.READY:
        return replace(claim, percent=0, stage="rolled back"), Done("rollback", why)
    if progress.state is State.LOST:
        return claim, Done("rollback", why if progress.sentence in why else f"{why} ({progress.sentence})")
    return claim, TakeBack()


def _opening(claim: Claim, canary: Canary, percent: int, world: World) -> tuple[Claim, Action]:
    try:
        check_untouched(world.live, canary)
    except CanaryLost as lost:
        return close(claim, str(lost)), TakeBack()
    if not claim.watches:
        claim = _next(claim, percent, world.now)
    progress = assess_split(world.live, canary, percent)
    if progress.state is State.READY:
        begun = replace(claim.watches[-1], opened_at=world.now)
        return replace(claim, watches=(*claim.watches[:-1], begun), opened_at=world.now), Opened(percent)
    if world.stuck is not None:
        return close(claim, world.stuck), TakeBack()
    return claim, Shift(percent)


def _watching(
    claim: Claim, canary: Canary, stretch: Watched, percent: int, world: World, rules: Rules
) -> tuple[Claim, Action]:
    try:
        check_untouched(world.live, canary, percent)
    except CanaryLost as lost:
        return close(claim, str(lost)), TakeBack()
    if world.judged == "continue":
        return claim, Look()
    if world.judged == "rollback":
        return close(claim, world.reason), TakeBack()
    if stretch.beside_question:
        # These windows may stop the canary and never promote it: what ends them is silence.
        silence = f"Nobody answered within {rules.answer_within}: rolled back."
        return close(claim, f"Not watched: {world.reason}" if world.blind else silence), TakeBack()
    if rules.asks_on(world.judged, percent):
        return claim, Done("ask", world.reason)
    if world.judged == "inconclusive":
        return close(claim, world.reason), TakeBack()
    claim = go_on(claim, world.now, rules, world.reason)
    if claim.promoted:
        return claim, Promote(percent)
    return claim, Shift(claim.percent or 0)


def _promoting(claim: Claim, canary: Canary, percent: int, world: World) -> tuple[Claim, Action]:
    written = world.live is not None and world.live.canary_percent in (None, 100)
    try:
        check_untouched(world.live, canary, None if written else percent)
    except CanaryLost as lost:
        return close(claim, str(lost)), TakeBack()
    if written and assess_promoted(world.live, canary).state is State.READY:
        if claim.stage != PROMOTED:
            claim = replace(claim, stage=PROMOTED, percent=None, opened_at=world.now)
        return claim, Done("promote", claim.proven or "")
    return claim, Promote(percent)


def _baking(claim: Claim, canary: Canary, world: World) -> tuple[Claim, Action]:
    try:
        check_untouched(world.live, canary, None)
    except CanaryLost as lost:
        return close(claim, str(lost)), TakeBack()
    if world.judged == "rollback":
        return close(claim, world.reason), TakeBack()
    if world.judged == "continue":
        return claim, Look()
    return claim, Done("baked", world.reason)


def _is_ordered(claim: Claim, canary: Canary) -> bool:
    """Whether a person has ordered the promotion of this very canary: a run that was cleared may have staged another
    one since."""
    return claim.order is not None and claim.order.kind == "promote" and claim.order.revision == canary.revision
