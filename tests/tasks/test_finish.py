"""How the report reads the end of a run: from the states of its tasks, and from what they left."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from model_release.errors import ReleaseError, ReleaseFailed, RolledBack
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import records, telemetry
from model_release.tasks.finish import Report
from model_release.tasks.run import Run

BUILT = dict.fromkeys(("resolve", "export", "archive", "publish"), "success")
CLAIMED = {**BUILT, **dict.fromkeys(("claim", "stage", "smoke"), "success")}
WATCHED = {**CLAIMED, **dict.fromkeys(("canary", "decide"), "success"), "go_live": "skipped"}
REST = {"settle": "success", "report": "running"}
NOTHING_RAN = {"settle": "skipped", "report": "running"}
PUBLISHED = {("publish", "return_value"): {"version": "0123456789abcdef", "uri": "s3://…/"}}
STAGED = {("stage", "return_value"): {"kind": "canary", "sentence": "…", "canary": {}}}
SETTLED = {("settle", "return_value"): "digits-00001 has all of the traffic"}
TURNED_BACK = {("decide", "back"): "Rolled back: 9 of 30 canary requests failed."}

#: states, XComs, rollout → outcome, sentence, what settle said
ENDINGS: dict[str, tuple[dict[str, str | None], dict[Any, Any], str, tuple[str, str, str | None]]] = {
    "promoted": (
        {**WATCHED, "promote": "success", "bake": "success", "decide_bake": "success", "roll_back": "skipped", **REST},
        {("canary", "return_value"): {"reason": "Promoted: 0 of 300 canary requests failed."}, **SETTLED},
        "auto",
        ("promoted", "Promoted: 0 of 300 canary requests failed.", None),
    ),
    "first": (
        {**CLAIMED, "go_live": "success", "canary": "skipped", **REST},
        SETTLED,
        "auto",
        ("first", "live at 100 %, the first version of the service.", None),
    ),
    "rolled back": (
        {**WATCHED, "promote": "skipped", "roll_back": "success", **REST},
        {**TURNED_BACK, **SETTLED},
        "auto",
        ("rolled_back", "Rolled back: 9 of 30 canary requests failed.", "digits-00001 has all of the traffic"),
    ),
    "rolled back during the bake": (
        {**WATCHED, "promote": "success", "bake": "success", "decide_bake": "success", "roll_back": "success", **REST},
        {
            ("canary", "return_value"): {"reason": "Promoted: …"},
            ("decide_bake", "back"): "Rolled back: 9 of 90 canary requests failed.",
            **SETTLED,
        },
        "auto",
        ("rolled_back", "Rolled back: 9 of 90 canary requests failed.", "digits-00001 has all of the traffic"),
    ),
    "closed by a hand beside the way, and its task failed of that": (
        {**WATCHED, "canary": "failed", "decide": "upstream_failed", **REST},
        {("canary", "trouble"): "nobody looked for 63 s", ("settle", "closed"): "nobody looked for 63 s", **SETTLED},
        "auto",
        ("rolled_back", "nobody looked for 63 s", "digits-00001 has all of the traffic"),
    ),
    "rolled back and not settled": (
        {**WATCHED, "roll_back": "success", "settle": "failed", "report": "running"},
        {**TURNED_BACK, ("settle", "trouble"): "the template could not be restored"},
        "auto",
        (
            "rolled_back",
            "Rolled back: 9 of 30 canary requests failed. task settle failed: the template could not be restored",
            None,
        ),
    ),
    "rolled back after a task had failed": (
        {**WATCHED, "roll_back": "success", "promote": "failed", **REST},
        {("promote", "trouble"): "the split did not take effect", **SETTLED},
        "auto",
        ("failed", "task promote failed: the split did not take effect", "digits-00001 has all of the traffic"),
    ),
    "promoted and not settled": (
        {**WATCHED, "promote": "success", "settle": "failed", "report": "running"},
        {("settle", "trouble"): "nobody answers"},
        "auto",
        ("failed", "task settle failed: nobody answers", None),
    ),
    "a task failed, and settle too": (
        {"settle": "failed", **CLAIMED, "smoke": "failed", "report": "running"},
        {("smoke", "trouble"): "503", ("settle", "trouble"): "nobody answers"},
        "auto",
        ("failed", "task settle failed: nobody answers", None),
    ),
    "killed by the machine": (
        {**WATCHED, "canary": "failed", "decide": "upstream_failed", **REST},
        SETTLED,
        "auto",
        (
            "failed",
            "task canary failed: it was ended from outside: marked by hand, killed or lost",
            "digits-00001 has all of the traffic",
        ),
    ),
    "nothing new": (
        {**CLAIMED, "go_live": "skipped", "canary": "skipped", **REST},
        {("stage", "return_value"): {"kind": "nothing_new"}, ("settle", "return_value"): "nothing to do"},
        "auto",
        ("nothing_new", "the stable version already; nothing new.", None),
    ),
    "published": (
        {**BUILT, "claim": "skipped", "stage": "skipped", **NOTHING_RAN},
        {},
        "none",
        ("published", "published; no traffic was moved.", None),
    ),
    "the claim was skipped by hand": (
        {**BUILT, "claim": "skipped", "stage": "skipped", **NOTHING_RAN},
        {},
        "auto",
        ("failed", "the run was ended before it came to a decision.", None),
    ),
    "ended by hand while the canary was open": (
        {**WATCHED, "decide": "skipped", "promote": "skipped", "roll_back": "skipped", **REST},
        {**STAGED, **SETTLED},
        "auto",
        ("failed", "the run was ended before it came to a decision.", "digits-00001 has all of the traffic"),
    ),
    "nothing ever ran": (
        {"resolve": None, "report": "running"},
        {},
        "auto",
        ("failed", "the run was ended before it came to a decision.", None),
    ),
}  # fmt: skip
STAGES = ["resolve", "export", "archive", "publish", "claim", "stage", "smoke", "go_live", "canary", "decide",
          "promote", "bake", "roll_back"]  # fmt: skip


@pytest.fixture
def report(spec: ModelSpec) -> Report:
    return Report(task_id="report", spec=spec)


@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending_is_told_by_what_the_tasks_left(
    report: Report, spec: ModelSpec, context: Any, ti: Any, name: str
) -> None:
    ti.states, ti.xcoms, rollout, told = ENDINGS[name]
    context["params"]["rollout"] = rollout
    assert report.ending(context, Run.of(context, spec)) == told


@pytest.mark.parametrize("failed", STAGES)
def test_a_run_that_failed_is_told_by_the_task_that_failed(
    report: Report, spec: ModelSpec, context: Any, ti: Any, failed: str
) -> None:
    before = dict.fromkeys(STAGES[: STAGES.index(failed)], "success")
    if failed == "roll_back":
        before["promote"] = "skipped"
    after = dict.fromkeys(STAGES[STAGES.index(failed) + 1 :], "upstream_failed")
    ti.states = {**before, failed: "failed", **after, **REST}
    ti.xcoms = {(failed, "trouble"): "what was wrong", **SETTLED}
    ending = report.ending(context, Run.of(context, spec))
    assert ending == ("failed", f"task {failed} failed: what was wrong", SETTLED["settle", "return_value"])


def test_what_was_ended_beside_the_way_is_not_told_for_what_ended_the_release(
    report: Report, spec: ModelSpec, context: Any, ti: Any
) -> None:
    """A run that is marked failed takes along each task that Airflow still holds for running."""
    ti.states = {**BUILT, "claim": "success", "stage": "failed", "look_back": "failed", **REST}
    ti.xcoms = SETTLED
    assert report.ending(context, Run.of(context, spec))[1].startswith("task stage failed: it was ended from outside")
    ti.states["stage"] = "skipped"
    assert report.ending(context, Run.of(context, spec))[1].startswith("task look_back failed: ")


@pytest.mark.parametrize("before", ["promoted", "first"])
def test_a_run_that_finds_stable_what_it_made_stable_does_not_forget_that(
    report: Report, context: Any, ti: Any, record: Record, before: str
) -> None:
    """Cleared as a whole after its end. Who asks the history whether the version was live, asks for this word."""
    record.finish(before, "0 of 300 failed", "2026-03-01T02:10:00.000+00:00")
    ti.states, xcoms, _, _ = ENDINGS["nothing new"]
    ti.xcoms = {**PUBLISHED, **xcoms}
    assert "nothing new" in report.execute(context)
    assert (record.outcome, record.reason, record.ended) == (before, "0 of 300 failed", "2026-03-01T02:10:00.000+00:00")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    kept = Record.new("r", model="digits", service="models/digits", version=None, started="2026-03-01T02:00:00+00:00")
    minutes = itertools.count(20)
    monkeypatch.setattr(records, "change", lambda spec, run, edit: edit(kept))
    monkeypatch.setattr(records, "now", lambda: f"2026-03-01T02:{next(minutes)}:00.000+00:00")
    return kept


@pytest.mark.parametrize(
    ("name", "raised", "line"),
    [
        ("promoted", None, "digits 0123456789abcdef: Promoted: 0 of 300 canary requests failed."),
        ("first", None, "digits 0123456789abcdef: live at 100 %, the first version of the service."),
        ("nothing new", None, "digits 0123456789abcdef: the stable version already; nothing new."),
        (
            "rolled back",
            RolledBack,
            "digits 0123456789abcdef: Rolled back: 9 of 30 canary requests failed. "
            "Settled: digits-00001 has all of the traffic.",
        ),
        (
            "killed by the machine",
            ReleaseFailed,
            "digits 0123456789abcdef: task canary failed: it was ended from outside: marked by hand, killed or lost "
            "Settled: digits-00001 has all of the traffic.",
        ),
    ],
)
def test_a_release_that_did_not_come_to_its_end_fails_the_run_with_its_sentence(
    report: Report, context: Any, ti: Any, record: Record, name: str, raised: type[ReleaseError] | None, line: str
) -> None:
    ti.states, xcoms, _, (outcome, sentence, _) = ENDINGS[name]
    ti.xcoms = {**PUBLISHED, **xcoms}
    if raised is None:
        assert report.execute(context) == line
    else:
        with pytest.raises(raised) as error:
            report.execute(context)
        assert str(error.value) == line
        assert ti.xcoms["this", "return_value"] == line
    assert (record.outcome, record.reason) == (outcome, sentence)


def test_the_record_ends_when_the_run_does_and_not_at_the_promotion(
    report: Report, context: Any, ti: Any, record: Record
) -> None:
    ti.states, ti.xcoms, _, _ = ENDINGS["promoted"]
    record.finish("promoted", "digits-00002 has all of the traffic", "2026-03-01T02:10:00.000+00:00")
    report.execute(context)
    assert record.ended == "2026-03-01T02:20:00.000+00:00"
    report.execute(context)
    assert record.ended == "2026-03-01T02:20:00.000+00:00", "a report that is run again says the same"


def test_a_release_is_counted_once_whatever_becomes_of_the_stores_answer(
    report: Report, context: Any, ti: Any, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store wrote the end and its answer was lost: the second try finds what the first one wrote."""
    counted: list[str | None] = []
    monkeypatch.setattr(telemetry, "released", lambda ended: counted.append(ended.outcome))
    monkeypatch.setattr(records, "change", lambda spec, run, edit: (edit(record), edit(record)))
    ti.states, ti.xcoms, _, _ = ENDINGS["promoted"]
    for _ in range(2):
        report.execute(context)
    assert counted == ["promoted"]
