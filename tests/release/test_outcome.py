"""How a release ended: a table, one row for each end that there is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from model_release.cluster.change import Baseline
from model_release.cluster.release import Cause, Phase, Release
from model_release.errors import ReleaseFailed, RolledBack
from model_release.release.outcome import Ending, Outcome, outcome_of, swept, unclaimed, unsettled
from model_release.tasks import notify
from model_release.web import words

from .builders import NOW, OWNER, STAGED, opened

PROMOTED = replace(opened(30), phase=Phase.PROMOTED, word="Promoted: 0 of 300.", promoted_at=NOW)
CLAIMED = Release(OWNER, namespace="models", name="m")


@dataclass(frozen=True)
class Row:
    """An end, and what log, page and people are told of it."""

    release: Release
    kind: Ending
    sentence: str
    cause: str | None
    badge: str
    event: str | None


def back(cause: Cause, why: str, badge: str, event: str = notify.ROLLED_BACK) -> Row:
    return Row(opened(30).close(why, cause), "rolled_back", why, cause, badge, event)


TABLE = {
    "promoted": Row(PROMOTED, "promoted", "Promoted: 0 of 300.", None, "Promoted", notify.PROMOTED),
    "promoted, and its bake is over": Row(
        replace(PROMOTED, phase=Phase.BAKING), "promoted", "Promoted: 0 of 300.", None, "Promoted", notify.PROMOTED
    ),
    "the service's first version": Row(
        replace(PROMOTED, baseline=Baseline(), word="live at 100 %"),
        "first", "live at 100 %", None, "First version live", notify.PROMOTED,
    ),
    "evidence against it": back(Cause.EVIDENCE, "9 of 30 failed", "Rolled back: evidence"),
    "no data": back(Cause.NO_DATA, "no data for errors", "Rolled back: no data", notify.INCONCLUSIVE),
    "no decision by the deadline": back(Cause.DEADLINE, "Cannot tell.", "Rolled back: deadline", notify.INCONCLUSIVE),
    "a person took it back": back(Cause.PERSON, "Rolled back by anna: because", "Rolled back: person"),
    "nobody looked, and the guard closed it": back(Cause.GUARD, "closed: nobody looked for 63 s", "Rolled back: guard"),
    "the canary died": back(Cause.DEAD, "m-00002 is dead: OutOfMemory", "Rolled back: dead"),
    "another hand changed the service": back(Cause.CHANGED, "the spec says 80 %", "Rolled back: changed"),
    "the gateway never took the share": back(Cause.STUCK, "not within 2 minutes", "Rolled back: stuck"),
    "a task was marked by hand": back(Cause.UNPROVEN, "nothing is proven", "Rolled back: unproven"),
    "turned back late, after its promotion": Row(
        replace(PROMOTED, phase=Phase.BAKING).close("9 of 90 failed", Cause.EVIDENCE),
        "rolled_back", "9 of 90 failed", Cause.EVIDENCE, "Rolled back: evidence", notify.ROLLED_BACK,
    ),
    "turned back, and its task failed of that": Row(
        replace(opened(30).close("nobody looked", Cause.GUARD), trouble="task canary failed: nobody looked"),
        "rolled_back", "nobody looked", Cause.GUARD, "Rolled back: guard", notify.ROLLED_BACK,
    ),
    "turned back by the edition before, which knew no causes": Row(
        replace(opened(30).close("why", Cause.GUARD), cause=None),
        "rolled_back", "why", None, "Rolled back", notify.ROLLED_BACK,
    ),
    "refused before anything was touched": Row(
        replace(CLAIMED, trouble="task stage failed: not ours"),
        "failed", "task stage failed: not ours", "refused", "Failed: refused", notify.FAILED,
    ),
    "it never came up": Row(
        replace(STAGED, phase=Phase.STAGED, trouble="task stage failed: not ready in time"),
        "failed", "task stage failed: not ready in time", "before traffic", "Failed: before traffic", notify.FAILED,
    ),
    "its task was killed while it was open": Row(
        replace(opened(30), trouble="task canary failed: it was ended from outside"),
        "failed", "task canary failed: it was ended from outside", None, "Failed", notify.FAILED,
    ),
    "its bake was killed": Row(
        replace(PROMOTED, phase=Phase.BAKING, trouble="task bake failed: lost"),
        "failed", "task bake failed: lost", None, "Failed", notify.FAILED,
    ),
    "its run was ended while it was open": Row(
        opened(30), "failed", "the run was ended before it came to a decision.", None, "Failed", notify.FAILED
    ),
    "its run was ended while it stood at 0 %": Row(
        STAGED, "failed", "the run was ended before it came to a decision.", "before traffic",
        "Failed: before traffic", notify.FAILED,
    ),
    "nothing new": Row(
        replace(CLAIMED, baseline=Baseline("1", "m-00001"), cause=Cause.NOTHING_NEW),
        "nothing_new", "the stable version already; nothing new.", None, "Nothing new", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
@pytest.mark.parametrize("settled", [False, True])
def test_each_end_is_told_in_one_place(row: Row, settled: bool) -> None:
    release = replace(row.release, phase=Phase.SETTLED) if settled else row.release
    found = outcome_of(release)
    assert (found.kind, found.sentence, found.cause) == (row.kind, row.sentence, row.cause)
    assert words.outcome(found.kind, found.cause)["word"] == row.badge
    assert notify.event_of(found) == row.event


def test_every_cause_has_its_row() -> None:
    assert {row.release.cause for row in TABLE.values()} >= set(Cause)


@pytest.mark.parametrize(
    ("kind", "error"), [("rolled_back", RolledBack), ("failed", ReleaseFailed), ("promoted", None), ("published", None)]
)
def test_the_runs_state_is_the_outcomes(kind: Ending, error: type[Exception] | None) -> None:
    outcome = Outcome(kind, "why")
    if error is None:
        outcome.check("line")
    else:
        with pytest.raises(error, match="line"):
            outcome.check("line")


def test_a_run_that_claimed_nothing_is_told_by_what_failed() -> None:
    assert unclaimed(trouble="task export failed: why") == Outcome(
        "failed", "task export failed: why", "before traffic"
    )
    assert unclaimed(trouble="task claim failed: frozen", refused=True).cause == "refused"
    assert unclaimed(trouble=None, nothing_new=True).kind == "nothing_new"
    assert unclaimed(trouble=None, published=True).kind == "published"
    assert unclaimed(trouble=None).kind == "failed"


def test_what_could_not_be_settled_is_an_incident_whatever_was_decided() -> None:
    trouble = "task settle failed: nobody answers"
    assert unsettled(outcome_of(PROMOTED), trouble) == Outcome("failed", trouble)
    back = unsettled(outcome_of(opened(30).close("9 of 30", Cause.EVIDENCE)), trouble)
    assert (back.kind, back.sentence) == ("failed", f"{trouble}; turned back before: 9 of 30")


def test_what_the_sweep_finds_is_told_with_what_it_did() -> None:
    line = "its run ended without settling; models/m: m-00001 has it"
    assert swept(PROMOTED, True, "models/m: m-00001 has it") == Outcome("promoted", line)
    assert swept(opened(30), False, "models/m: m-00001 has it").sentence == line
    closed = swept(opened(30).close("9 of 30", Cause.EVIDENCE), False, "models/m: m-00001 has it")
    assert closed == Outcome("rolled_back", f"9 of 30 ({line})", Cause.EVIDENCE)
