"""The decision record: idempotent, plain JSON, and replayed to the same verdicts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_release.judging import Judge, Past, Policy, judge
from model_release.judging.__main__ import main
from model_release.judging.record import Record, RecordError
from model_release.judging.replay import Replays

from .builders import policy, window


def released(rate: float, *, final: bool = False, length: int = 80) -> Record:
    record = Record.new(
        "digits-20260301T020000",
        model="digits",
        service="models/digits",
        version="3f9a",
        started="2026-03-01T02:00:00Z",
        baseline={"revision": "digits-predictor-00001", "version": "11aa"},
        canary={"revision": "digits-predictor-00002"},
        run={"dag_id": "release_digits", "run_id": "manual", "url": "http://127.0.0.1:8080/"},
    )
    rng = np.random.default_rng(7)
    for percent in (10, 30):
        p = policy(max_rate=0.02, max_ratio=1.5, floor=0.005, steps=2, traffic=percent / 100)
        one, seen = Judge(p), []
        for i in range(length):
            n = 2 * percent
            w = window((n, int(rng.binomial(n, rate))), (200 - n, int(rng.binomial(200 - n, 0.002))), at=i)
            seen.append(w)
            one.add(w)
            if one.decided:
                break
        verdict = one.verdict(final=final and not one.decided)
        record.record_step(
            percent,
            f"2026-03-01T02:{percent}:00Z",
            window_seconds=10,
            policy=p,
            windows=seen,
            final=final and not one.decided,
            verdict=verdict,
        )
        if verdict.decision != "promote":
            break
    return record


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.01])
def test_a_record_replays_to_the_recorded_verdicts(rate: float) -> None:
    record = released(rate, final=True)
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.differences() == []
    last = {look.percent: look.verdict.to_dict() for look in again.replay()}
    assert last == {step["percent"]: step["verdict"] for step in record.steps}


def test_a_forged_record_is_found_out() -> None:
    record = released(0.05)
    forged = json.loads(record.to_json())
    forged["steps"][-1]["verdict"]["decision"] = "promote"
    assert Record.from_dict(forged).differences() == [
        f"steps[0]: recorded promote, replayed rollback: {record.steps[0]['verdict']['reason']}"
    ]


def first_edition(rate: float, decision: str) -> Record:
    """A record as the first edition of the judge wrote it: no edition, and a verdict with other figures."""
    data = json.loads(released(rate, final=True).to_json())
    data.pop("past")
    for step in data["steps"]:
        step.pop("edition")
        for name in ("indifference", "deadline_windows"):
            step["policy"].pop(name)
        step["verdict"] = {
            "decision": step["verdict"]["decision"],
            "windows_used": 1,
            "reason": "as it was",
            "metrics": [],
        }
    data["steps"][-1]["verdict"]["decision"] = decision
    return Record.from_dict(data)


def test_a_record_of_the_first_edition_is_replayed_and_what_is_decided_otherwise_is_said() -> None:
    alike = first_edition(0.05, "rollback")
    assert alike.editions == (1,)
    assert alike.differences() == []
    other = first_edition(0.05, "promote")
    (line,) = other.differences()
    assert line.startswith(
        "steps[0]: edition 1 of the judge decided promote, edition 4 decides rollback: Rolled back: "
    )


def test_the_command_says_which_edition_had_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text(first_edition(0.05, "rollback").to_json())
    assert main(["--replay", str(tmp_path / "record.json")]) == 0
    *_, edition, last = capsys.readouterr().out.splitlines()
    assert edition == "judged by edition 1, replayed by edition 4 of the judge"
    assert last == "the replay gives the recorded decisions"


def test_a_record_keeps_the_past_that_the_judge_was_told() -> None:
    past = Past.from_dict({"windows": [{"requests": 200, "bad": {"errors": int(i % 4 == 0)}} for i in range(300)]})
    record = released(0.0)
    step = record.steps[0]
    p, opened = Policy.from_dict(step["policy"]), step["opened"]
    seen = [window((20, 0), (180, int(i % 4 == 0)), at=i) for i in range(60)]
    record.past = past.to_dict()
    record.steps = []
    record.record_step(10, opened, window_seconds=10, policy=p, windows=seen, final=False, verdict=judge(p, seen, past))
    again = Record.from_json(record.to_json())
    assert again.differences() == []
    again.past = None
    assert again.differences(), "the past is part of the evidence"


def test_recording_twice_replaces() -> None:
    record = released(0.0)
    once = copy.deepcopy(record)
    for _ in range(2):
        step = once.steps[0]
        p = Policy.from_dict(step["policy"])
        seen = [window((20, 0), at=0)]
        record.record_step(
            10, step["opened"], window_seconds=10, policy=p, windows=seen, final=False, verdict=judge(p, seen)
        )
        record.record_traffic("2026-03-01T02:10:00Z", "open_10", 10, {"a-00001": 90, "a-00002": 10})
        record.record_approval("2026-03-01T02:20:00Z", "ana", "promote", "looked at the figures")
        record.finish("promoted", "Promoted.", "2026-03-01T02:31:00Z")
    assert len(record.steps) == len(once.steps)
    assert len(record.steps[0]["windows"]) == 1
    assert (len(record.traffic), len(record.approvals)) == (1, 1)
    assert record.steps[1] == once.steps[1]
    record.record_traffic("2026-03-01T02:11:00Z", "open_10", 10, {})
    assert len(record.traffic) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format: 2 is unknown"),
        ({"outcome": "fine"}, "outcome: 'fine' is none of"),
        ({"release": None}, "release: None is not text"),
        ({"steps": {}}, "steps: a list"),
        ({"colour": "red"}, "colour: unknown field"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, object], words: str) -> None:
    data = json.loads(released(0.0).to_json()) | change
    with pytest.raises(RecordError, match=words.split(":")[0]) as refusal:
        Record.from_dict(data)
    assert str(refusal.value).startswith(words)


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(RecordError):
        released(0.0).finish("well", "", "2026-03-01T02:31:00Z")


def test_replay_on_the_command_line_shows_each_look_as_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = released(0.05)
    path = tmp_path / "record.json"
    path.write_text(record.to_json())
    assert main(["--replay", str(path)]) == 0
    *looks, last = capsys.readouterr().out.splitlines()
    assert len(looks) == len(record.steps[0]["windows"])
    assert "10 %  window   1  continue" in looks[0]
    assert "rollback" in looks[-1]
    assert record.steps[0]["verdict"]["reason"] in looks[-1]
    assert last == "the replay gives the recorded verdicts"


def test_replay_with_another_policy_says_what_it_would_have_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = released(0.05)
    record.finish("rolled_back", record.steps[0]["verdict"]["reason"], "2026-03-01T02:31:00Z")
    (tmp_path / "record.json").write_text(record.to_json())
    lenient = {"metrics": [{"name": "errors", "max_rate": 0.5}], "min_requests": 20}
    (tmp_path / "lenient.json").write_text(json.dumps(lenient))
    assert main(["--replay", str(tmp_path / "record.json"), "--policy", str(tmp_path / "lenient.json")]) == 0
    out = capsys.readouterr().out
    assert "promote" in out
    assert out.splitlines()[-1].endswith(record.reason)
    lenient["metrics"][0]["name"] = "slow"
    (tmp_path / "lenient.json").write_text(json.dumps(lenient))
    assert main(["--replay", str(tmp_path / "record.json"), "--policy", str(tmp_path / "lenient.json")]) == 2
    assert capsys.readouterr().err == "policy.metrics[0].name: 'slow' was not counted; counted are errors\n"


def test_a_missing_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--replay", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.endswith("none.json: No such file or directory\n")


def test_a_step_that_has_grown_is_replayed_from_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = released(0.0, final=True, length=12)
    kept, judged = Replays(looks=99), []
    add = Judge.add
    monkeypatch.setattr(Judge, "add", lambda one, window: judged.append(window) or add(one, window))
    for windows, final in ((5, False), (5, True), (9, False), (12, True), (12, True)):
        grown = Record.from_json(whole.to_json())  # as it is read from the store each time
        grown.steps[0] |= {"windows": grown.steps[0]["windows"][:windows], "final": final}
        del grown.steps[1:]
        looks, again = grown.replay(kept=kept), len(judged)
        assert looks == grown.replay()
        del judged[again:]
    assert len(judged) == 12, "each window once"


@pytest.mark.parametrize("changed", ["policy", "past", "a window", "fewer windows"])
def test_a_step_that_is_another_one_is_replayed_from_its_beginning(changed: str) -> None:
    record, kept = released(0.0, length=12), Replays(looks=99)
    before = Record.from_json(record.to_json()).replay(kept=kept)
    if changed == "policy":
        record.steps[0]["policy"]["metrics"][0]["max_rate"] = 0.5
    elif changed == "past":
        record.record_past(Past.from_dict({"windows": [{"requests": 200, "bad": {"errors": 1}}] * 30}))
        record.steps[0].pop("past", None)
    elif changed == "a window":
        record.steps[0]["windows"][3]["canary"]["bad"]["errors"] = 3
    else:
        del record.steps[0]["windows"][6:]
    now = record.replay(kept=kept)
    assert now == record.replay()
    assert now != before


def test_no_more_looks_are_kept_than_were_wanted() -> None:
    kept = Replays(looks=4)
    records = [released(0.0, length=2) for _ in range(3)]
    for name, one in zip("abc", records, strict=True):
        one.release = name
    for one in (*records[:2], records[0], records[2]):
        assert one.replay(kept=kept) == one.replay()
    assert [key[0] for key in kept._kept] == ["a", "c"], "b was not asked for longest"
    long = released(0.0, length=9)
    long.replay(kept=kept)
    assert [len(one.looks) for one in kept._kept.values()] == [9], "the last one stays"


def test_what_is_kept_is_nobodys_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may take it at once, and go on with it."""
    whole = released(0.0, length=9)
    early, kept, keep = Record.from_json(whole.to_json()), Replays(looks=99), Replays.keep
    del early.steps[0]["windows"][5:]

    def at_once(one: Replays, *what: Any) -> None:
        keep(one, *what)
        monkeypatch.setattr(Replays, "keep", keep)
        whole.replay(kept=one)

    monkeypatch.setattr(Replays, "keep", at_once)
    assert early.replay(kept=kept) == early.replay()


def test_a_step_that_is_decided_by_what_it_carries_has_one_look() -> None:
    """By another policy a step before it may have been enough."""
    record = released(0.0)
    first, second = record.steps
    second["carried"] = [[first["opened"], len(first["windows"])]]
    stricter = policy(max_rate=0.02, max_ratio=1.5, floor=0.005, min_requests=1, indifference=50)
    look = record.replay(stricter)[-1]
    assert (look.percent, look.window, look.end) == (30, 1, second["windows"][0]["end"])
