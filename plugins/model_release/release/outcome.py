"""How a release ended: one value, worked out in one place from the final release.

Log, page, notification, the run's state, the record and the telemetry say what this says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from model_release.cluster.release import Cause, Phase
from model_release.errors import ReleaseFailed, RolledBack

if TYPE_CHECKING:
    from model_release.cluster.release import Release
    from model_release.judging.record import Record

Ending = Literal["promoted", "first", "rolled_back", "nothing_new", "published", "failed"]

# What a release that failed had touched: nothing, the spec at 0 %, or users.
REFUSED, BEFORE_TRAFFIC = "refused", "before traffic"
NOTHING_NEW = "the stable version already; nothing new."
FROM_OUTSIDE = "the run was ended before it came to a decision."


@dataclass(frozen=True)
class Outcome:
    """What became of a release. `kind` is the decision record's word; `cause` says what turned it back or how far one
    that failed had come, in a word; `sentence` is what people read."""

    kind: Ending
    sentence: str
    cause: str | None = None

    @property
    def undecided(self) -> bool:
        """Whether it went back without any evidence against it."""
        return self.kind == "rolled_back" and self.cause in (Cause.NO_DATA, Cause.DEADLINE)

    def check(self, line: str) -> None:
        """Nothing, when the release did what it was to do; `line` is what its run fails with otherwise.

        Raises:
            RolledBack: it was turned back.
            ReleaseFailed: it came to no decision.
        """
        if self.kind == "rolled_back":
            raise RolledBack(line)
        if self.kind == "failed":
            raise ReleaseFailed(line)


def outcome_of(release: Release) -> Outcome:
    """The end of a release that was claimed."""
    if release.closed is not None:
        return Outcome("rolled_back", release.closed, release.cause)
    if release.trouble is not None:
        return Outcome("failed", release.trouble, _reached(release))
    if release.promoted_at is not None or release.promoted:
        return Outcome("first" if release.is_first else "promoted", release.word or "promoted.")
    if release.cause is Cause.NOTHING_NEW:
        return Outcome("nothing_new", NOTHING_NEW)
    return Outcome("failed", FROM_OUTSIDE, _reached(release))


def recorded(record: Record) -> Outcome | None:
    """The end that a decision record has; None while it has none. "inconclusive" is an older edition's word."""
    if record.outcome is None:
        return None
    if record.outcome == "inconclusive":
        return Outcome("rolled_back", record.reason, Cause.DEADLINE)
    return Outcome(cast(Ending, record.outcome), record.reason, record.cause)


def unclaimed(
    *, trouble: str | None, refused: bool = False, nothing_new: bool | str = False, published: bool = False
) -> Outcome:
    """The end of a run that claimed no service.

    Args:
        trouble: what failed; `refused`: it was the claim.
        nothing_new: the version that it found is live, or a sentence of another reason why there was nothing to do.
        published: it was not to move traffic, and its version is in the store.
    """
    if trouble is not None:
        return Outcome("failed", trouble, REFUSED if refused else BEFORE_TRAFFIC)
    if nothing_new:
        return Outcome("nothing_new", nothing_new if isinstance(nothing_new, str) else NOTHING_NEW)
    if published:
        return Outcome("published", "published; no traffic was moved.")
    return Outcome("failed", FROM_OUTSIDE, BEFORE_TRAFFIC)


def unsettled(outcome: Outcome, trouble: str) -> Outcome:
    """The same, where the service could not be settled: an incident, whatever was decided before."""
    before = f"; turned back before: {outcome.sentence}" if outcome.kind == "rolled_back" else ""
    return Outcome("failed", f"{trouble}{before}", outcome.cause)


def swept(release: Release, stands: bool, line: str) -> Outcome:
    """The end of a release whose run never settled it, as the sweep found it.

    Args:
        stands: what it had promoted has all of the traffic.
        line: what the sweep did.
    """
    why = f"its run ended without settling; {line}"
    if release.closed is not None:
        return Outcome("rolled_back", f"{release.closed} ({why})", release.cause)
    if stands:
        return replace(outcome_of(replace(release, trouble=None)), sentence=why)
    return Outcome("failed", why, _reached(release))


def _reached(release: Release) -> str | None:
    if release.promoted_at is not None or any(one.opened_at for one in release.watches):
        return None
    untouched = release.template is None and release.phase in (Phase.CLAIMED, Phase.SETTLED)
    return REFUSED if untouched else BEFORE_TRAFFIC
