"""A release: one value, from its claim to its end. Kept in the service's Lease (`cluster.lease`), moved by
`release.advance`, and told by `release.outcome`.

    claimed ► staged ► proven ► open ⟲ ► promoted ► baking ► settled
       └─────────┴────────┴──────┴───────────┴─────────┴───► closing ► restored ► settled
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Literal

from model_release.cluster.before import as_of_today
from model_release.cluster.change import Baseline, Canary
from model_release.errors import CanaryLost, RolledBack

# Of the JSON in a Lease. Those written before it was named are read (`cluster.before`); a later one is not.
FORMAT = 3
READ = (2, 3)


class Phase(StrEnum):
    """Where a release stands."""

    CLAIMED = "claimed"  # the service is its own; nothing is touched
    STAGED = "staged"  # its template is in the spec, at 0 %
    PROVEN = "proven"  # its revision answered the smoke prediction, and the shadow's pictures where there are any
    OPEN = "open"  # users meet it, or are about to: the stretch says at which share
    PROMOTED = "promoted"  # all of the traffic is asked for; `promoted_at`: the gateway has done it
    BAKING = "baking"  # promoted, and watched on
    CLOSING = "closing"  # its traffic is being taken back, for what `closed` says
    RESTORED = "restored"  # the baseline has the traffic again
    SETTLED = "settled"  # over; the lease is free


class Cause(StrEnum):
    """What turned a release back."""

    EVIDENCE = "evidence"
    NO_DATA = "no data"
    DEADLINE = "deadline"
    PERSON = "person"
    GUARD = "guard"
    DEAD = "dead"
    CHANGED = "changed"  # by another hand: the service is not what this release opened
    STUCK = "stuck"  # the gateway never took the share
    UNPROVEN = "unproven"  # a task was passed over by hand, or its run was cleared
    NOTHING_NEW = "nothing new"  # what was to be released is stable already


@dataclass(frozen=True)
class Owner:
    """The run that holds a lease. `installation` tells apart two Airflows that release into one cluster."""

    dag_id: str
    run_id: str
    url: str
    installation: str

    @property
    def identity(self) -> str:
        return f"{self.installation}/{self.dag_id}/{self.run_id}"


@dataclass(frozen=True)
class Order:
    """What a named person decided about the release under way, over the judge's head.

    `revision` is the canary that was meant: the order holds for no other. None: there was none yet, and none may come.
    """

    kind: Literal["promote", "roll_back"]
    who: str
    why: str
    when: str
    revision: str | None

    def __str__(self) -> str:
        done = "Promoted in spite of the judge" if self.kind == "promote" else "Rolled back"
        return f"{done} by {self.who}: {self.why}"


@dataclass(frozen=True)
class Watched:
    """A stretch of time in which the canary is looked at by one policy, at one share of the traffic.

    `percent` None: promoted, in its bake. `opened_at` None: the share was asked for, and the gateway does not have it
    yet. `until` None: it goes on. `beside_question`: a person is asked meanwhile, and these windows may stop the canary
    and never promote it, for `why`. `again`: the number of this further stretch at the same share. `windows`: so many
    of its windows were judged when it ended; None: all that ended in it count. `confidence`: of the promotion that the
    look at the deadline has given, where that is less than usual. `extended`: its deadline was, once.
    """

    percent: int | None
    opened_at: str | None = None
    until: str | None = None
    beside_question: bool = False
    again: int = 0
    why: str = ""
    windows: int | None = None
    confidence: float | None = None
    extended: bool = False


@dataclass(frozen=True)
class Release:
    """One release. Everything but the owner is filled in as it goes on.

    Attributes:
        namespace, name: of its InferenceService. The Lease's own name says it, so its JSON does not.
        record: the name of its decision record in the store.
        canary: the revision that it staged, when it came so far as to know it.
        template: InferenceService.template_digest of what was staged.
        started: InferenceService.started of that moment, with which the canary's name goes.
        created: the uid of the InferenceService that it made, when it was its first deployment.
        barred: revisions that must never get traffic from a settle: those that were the latest when the stable
            template was written back. Until status shows a newer one, "latest" still means one of them.
        insist: a person takes it back, who is there to hear that it cannot be done: nothing gets traffic unasked, not
            even the proven template in place of a baseline that is gone.
        watches: oldest first; all but the last are over.
        word: that on which all of the traffic was asked for.
        closed: why it was turned back, whoever did it; `cause` in one word.
        trouble: what failed on the way of a release that nobody turned back.
        spec: the model file that it began with, as JSON: an edit counts from the next release on.
        inherited: of a run that is over, and whose release is not settled yet.
    """

    owner: Owner
    record: str = ""
    phase: Phase = Phase.CLAIMED
    namespace: str = ""
    name: str = ""
    baseline: Baseline | None = None
    canary: str | None = None
    template: str | None = None
    started: str | None = None
    created: str | None = None
    barred: tuple[str, ...] = ()
    insist: bool = False
    watches: tuple[Watched, ...] = ()
    word: str | None = None
    promoted_at: str | None = None
    closed: str | None = None
    cause: Cause | None = None
    trouble: str | None = None
    order: Order | None = None
    spec: str | None = None
    inherited: Release | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON, for the Lease."""
        return {"format": FORMAT, **_without_place(asdict(self))}

    @classmethod
    def from_dict(cls, given: Any, namespace: str = "", name: str = "") -> Release:
        """Read back what `as_dict` wrote, in this edition or one before.

        Raises:
            ValueError: it is no such thing, in one line.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get("owner"), Mapping):
            raise ValueError("it names no owner, so no release wrote it")
        found = dict(given)
        number = found.pop("format", None)
        if number is None:
            found = as_of_today(found)
        elif number not in READ:
            raise ValueError(f"a newer edition wrote it: format {number!r}, and this one reads {FORMAT}")
        if unknown := sorted(found.keys() - {one.name for one in fields(cls)}):
            raise ValueError(f"{unknown[0]!r} is no field of a release; a newer edition may have written it")
        found |= {
            "owner": Owner(**found["owner"]),
            "phase": Phase(found.get("phase", Phase.CLAIMED)),
            "cause": Cause(found["cause"]) if found.get("cause") else None,
            "barred": tuple(found.get("barred") or ()),
            "watches": tuple(Watched(**one) for one in found.get("watches") or ()),
            "order": Order(**found["order"]) if found.get("order") else None,
            "baseline": Baseline.from_dict(found["baseline"]) if found.get("baseline") else None,
            "inherited": cls.from_dict(found["inherited"], namespace, name) if found.get("inherited") else None,
        }
        return cls(**found | {"namespace": namespace, "name": name})

    # -- where it stands -------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def stable(self) -> Baseline:
        """The baseline of a release that recorded one; one that did not touched nothing, and has nothing to go back to.

        Raises:
            CanaryLost: none was recorded.
        """
        if self.baseline is None:
            raise CanaryLost(f"no baseline of {self.key} was recorded; clear the run's task claim")
        return self.baseline

    @property
    def as_canary(self) -> Canary:
        """What it staged, for whoever has to see that nothing else is there.

        Raises:
            CanaryLost: nothing was staged yet.
        """
        if self.canary is None or self.template is None:
            raise CanaryLost(f"no canary of {self.key} was staged in this run; clear the run's task claim")
        uid = self.created or self.stable.uid or ""
        before = self.stable.revision
        return Canary(self.namespace, self.name, uid, self.canary, before, self.template, self.started)

    @property
    def promoted(self) -> bool:
        """Whether all of the traffic was asked for on somebody's word, and nobody has taken that back."""
        return self.phase in (Phase.PROMOTED, Phase.BAKING)

    @property
    def is_first(self) -> bool:
        """Whether nothing had ever been rolled out before it."""
        return self.baseline is not None and self.baseline.revision is None

    @property
    def percent(self) -> int | None:
        """The share that was asked for last; None where there is no share: before the canary, and after it."""
        if self.phase is Phase.RESTORED:
            return 0
        return self.watches[-1].percent if self.phase is Phase.OPEN and self.watches else None

    @property
    def opened_at(self) -> str | None:
        """Since when the gateway has what was asked for; None: it does not have it yet."""
        if self.promoted:
            return self.promoted_at
        return self.watches[-1].opened_at if self.phase is Phase.OPEN and self.watches else None

    @property
    def stage(self) -> str:
        """The phase as people read it, with the share."""
        return f"open at {self.percent} %" if self.phase is Phase.OPEN else self.phase.value

    def bars(self, revision: str | None) -> bool:
        """Whether this revision must not be given traffic on the way back."""
        return revision is None or revision == self.canary or revision in self.barred

    @property
    def went_back(self) -> str | None:
        """Why the release goes back, or has; None while it goes on."""
        ordered = self.order is not None and self.order.kind == "roll_back"
        return self.closed or (str(self.order) if ordered else None)

    def check_goes_on(self) -> None:
        """Nothing, when the release may go on. A change that was written before the word was seen is undone by
        `settle`: nothing may be built upon it.

        Raises:
            RolledBack: a person ordered it back, or its canary was closed, and why.
        """
        if self.went_back is not None:
            raise RolledBack(self.went_back)

    @property
    def left(self) -> Release:
        """What is to be settled when this one's run is over: its own release or, when it touched nothing yet, the one
        that it had taken over, with what was barred since."""
        if self.baseline is not None or self.inherited is None:
            return replace(self, inherited=None)
        return replace(self.inherited, barred=tuple(dict.fromkeys((*self.inherited.barred, *self.barred))))

    def close(self, why: str, cause: Cause) -> Release:
        """It is turned back. The first word about it stands.

        It counts as promoted no more: whoever settles what a crash leaves behind must not finish that.
        """
        if self.closed is not None:
            return self
        return replace(self, phase=Phase.CLOSING, closed=why, cause=cause)


def _without_place(found: dict[str, Any]) -> dict[str, Any]:
    inherited = found["inherited"]
    kept = {key: value for key, value in found.items() if key not in ("namespace", "name")}
    return kept | {"inherited": {"format": FORMAT, **_without_place(inherited)} if inherited else None}
