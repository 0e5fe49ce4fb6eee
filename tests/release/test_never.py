"""What never happens to a canary, held over random worlds: other hands, losses, crashes between any two writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model_release.cluster.release import Cause, Phase, Release
from model_release.release import advance as way
from model_release.release.advance import Done, Look, Opened, Promote, Rules, Shift, TakeBack, World, advance

from .builders import CANARY, NOW, STAGED, live, order

STEPS = (10, 30)


class Releases(RuleBasedStateMachine):
    """A world that does what it is told, late or never, while hands, evidence and accidents come as they like.

    The drive is killed by not applying what it decided: the release was recorded, the action was not done.
    """

    release: Release
    spec: int | None  # the share in the service's spec; None: promoted
    gateway: int  # the share that users get
    uid: str
    revision: str
    judged: Any
    proven_at: int | None  # the last share at which the evidence said promote, or a person did
    rules: Rules

    calm: bool  # no other hand comes: the whole way is walked more often

    @initialize(asks=st.sampled_from(["never", "before_promote", "on_inconclusive"]), calm=st.booleans())
    def staged(self, asks: Any, calm: bool) -> None:
        self.calm = calm
        self.release, self.spec, self.gateway, self.uid, self.revision = STAGED, 0, 0, "1", "m-00002"
        self.judged, self.proven_at, self.rules, self.ended = "continue", None, Rules(STEPS, asks, "4h"), False
        self.answered = False

    def seen(self) -> World:
        found = live(self.spec, gateway=self.gateway, uid=self.uid, revision=self.revision)
        return World(found, NOW, self.judged, "said so")

    @precondition(lambda self: not self.ended)
    @rule(killed=st.booleans(), crowd=st.integers(1, 2))
    def look(self, killed: bool, crowd: int) -> None:
        """One or two hands decide on the same world; the second writes on the lease that the first has written."""
        for _ in range(crowd):
            before = self.release
            self.release, action = advance(before, CANARY, self.seen(), self.rules)
            self.check(before, action)
            if not killed:
                self.apply(action)

    def check(self, before: Release, action: Any) -> None:
        forward = isinstance(action, Shift | Promote | Opened)
        assert not (forward and self.release.closed), "a canary that was closed gets nothing more"
        assert not (forward and (self.uid != "1" or self.revision != "m-00002")), "another's canary gets nothing"
        if isinstance(action, Promote):
            assert self.release.word, "all of the traffic is asked for on somebody's word"
            ordered = before.order is not None and before.order.kind == "promote"
            assert ordered or self.answered or self.proven_at == STEPS[-1], "on evidence at the last share, or a word"
            asked = self.rules.asks == "before_promote"
            assert ordered or self.answered or not asked, "a person who is to be asked was asked"
        if isinstance(action, Done) and action.decision == "promote":
            assert self.gateway == 100, "promoted is what the gateway has"
        if isinstance(action, Done) and action.decision == "rollback":
            assert self.gateway == 0, "taken back is what the gateway has"

    def apply(self, action: Any) -> None:
        match action:
            case Shift(percent):
                self.spec = percent
            case Promote():
                self.spec = None
            case TakeBack():
                self.spec = 0
            case Opened() | Look():
                pass
            case Done(decision, _):
                if decision == "ask":
                    self.release = way.ask(self.release, NOW, "0 of 300")
                else:
                    self.ended = True
                self.judged = "continue"
        if isinstance(action, Shift):
            self.judged = "continue"  # a new stretch has no windows yet

    @precondition(lambda self: not self.ended)
    @rule()
    def time_passes_quietly(self) -> None:
        """The gateway has what was asked for, and the drive looks until there is nothing to do."""
        for _ in range(4):
            self.the_gateway_follows()
            if not self.ended:
                self.look(killed=False, crowd=1)

    @precondition(
        lambda self: self.release.watches and self.release.watches[-1].beside_question and not self.release.closed
    )
    @rule()
    def a_person_says_promote(self) -> None:
        self.answered = True
        self.release = way.go_on(self.release, NOW, self.rules, "ada says promote.")

    @rule()
    def the_gateway_follows(self) -> None:
        self.gateway = 100 if self.spec is None else self.spec

    @precondition(
        lambda self: self.release.watches and self.release.watches[-1].opened_at and not self.release.promoted
    )
    @rule(word=st.sampled_from(["promote", "rollback", "inconclusive"]))
    def the_judge_speaks(self, word: Any) -> None:
        if self.release.watches[-1].beside_question and word == "promote":
            return  # a watch beside a question cannot say that (Policy.guard)
        self.judged = word
        if word == "promote" and self.release.closed is None:
            self.proven_at = self.release.percent

    @precondition(lambda self: not self.calm and not self.release.order)
    @rule(kind=st.sampled_from(["promote", "roll_back"]), which=st.sampled_from(["m-00002", "m-00003"]))
    def a_person_orders(self, kind: Any, which: str) -> None:
        self.release = replace(self.release, order=order(kind, which))

    @precondition(lambda self: not self.calm and not self.release.promoted)
    @rule()
    def the_guard_closes(self) -> None:
        self.release = self.release.close("nobody looked for 63 s", Cause.GUARD)
        self.spec = 0

    @precondition(lambda self: not self.calm)
    @rule(to=st.sampled_from([0, 50, None]))
    def another_hand_moves_the_split(self, to: int | None) -> None:
        self.spec = to

    @precondition(lambda self: not self.calm)
    @rule(what=st.sampled_from(["anew", "another revision"]))
    def another_hand_replaces_it(self, what: str) -> None:
        if what == "anew":
            self.uid = "2"
        else:
            self.revision = "m-00003"

    @invariant()
    def a_closed_release_is_no_promotion(self) -> None:
        if hasattr(self, "release"):
            assert not (self.release.closed and self.release.promoted)

    @invariant()
    def the_phase_says_what_is_recorded(self) -> None:
        if hasattr(self, "release"):
            turned_back = self.release.phase in (Phase.CLOSING, Phase.RESTORED)
            assert turned_back == (self.release.closed is not None)
            assert turned_back == (self.release.cause is not None)
            assert not self.release.promoted or self.release.word
            assert Release.from_dict(self.release.as_dict(), "models", "m") == self.release, "and the lease keeps it"


TestNever = Releases.TestCase
TestNever.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
