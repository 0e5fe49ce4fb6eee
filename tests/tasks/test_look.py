"""One watch, look by look: what it counts, what it leaves out, and when it ends. Time is given, nothing sleeps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from model_release.errors import ClusterUnavailable, MetricsUnavailable
from model_release.judging import Judge, Policy, Window
from model_release.serving.inference_service import InferenceService
from model_release.serving.rollout import Canary
from model_release.tasks.look import BLIND, Watch

OPENED = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
SECONDS = 10
DEADLINE = OPENED + timedelta(minutes=30)


def at(seconds: float) -> datetime:
    return OPENED + timedelta(seconds=seconds)


def window(number: int, bad: int | None = 0, requests: int | None = 100, *, alone: bool = False) -> Window:
    stable = None if alone else {"requests": 300, "bad": {"errors": 0}}
    return Window.from_dict(
        {
            "start": at(SECONDS * (number - 1)).isoformat(),
            "end": at(SECONDS * number).isoformat(),
            "canary": {"requests": requests, "bad": {"errors": bad}},
            "stable": stable,
        }
    )


def live(percent: int | None = 30, **predictor: Any) -> InferenceService:
    """The service as the release opened it, at `percent`."""
    split = {} if percent is None else {"canaryTrafficPercent": percent}
    traffic = [{"revisionName": "m-00002", "percent": 100 if percent is None else percent, "latestRevision": True}]
    if percent is not None:
        traffic.append({"revisionName": "m-00001", "percent": 100 - percent, "tag": "prev"})
    components = {"latestCreatedRevision": "m-00002", "latestReadyRevision": "m-00002", "traffic": traffic}
    return InferenceService(
        {
            "metadata": {"name": "m", "namespace": "models", "uid": "1", "resourceVersion": "1"},
            "spec": {"predictor": {"model": {"storageUri": "s3://models/m/2/"}, **predictor, **split}},
            "status": {"components": {"predictor": components}},
        }
    )


class Services:
    """Gives what `now` is: a service, None, or a trouble."""

    def __init__(self, percent: int | None = 30) -> None:
        self.now: InferenceService | Exception | None = live(percent)

    def get(self, namespace: str, name: str) -> InferenceService | None:
        assert (namespace, name) == ("models", "m")
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


class Reader:
    """Gives each window once it has ended, and once; or a trouble. Remembers up to when it was asked."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.left = list(windows)
        self.asked: list[datetime] = []
        self.trouble: Exception | None = None

    def read(self, end: datetime, *, now: datetime) -> list[Window]:
        if self.trouble:
            raise self.trouble
        self.asked.append(end)
        done = [one for one in self.left if datetime.fromisoformat(str(one.end)) <= end]
        self.left = self.left[len(done) :]
        return done


class NoValues:
    """The model file names no value metrics."""

    def measured(self, window: Window) -> Window:
        return window


def watch(windows: Sequence[Window], percent: int | None = 30, **policy: Any) -> tuple[Watch, Services, Reader]:
    services, reader = Services(percent), Reader(windows)
    baseline = "m-00001"
    said = {"traffic": None if percent is None else percent / 100, "metrics": [{"name": "errors", "max_rate": 0.02}]}
    one = Watch(
        services=services,  # type: ignore[arg-type]
        reader=reader,  # type: ignore[arg-type]
        values=NoValues(),  # type: ignore[arg-type]
        judge=Judge(Policy.from_dict({**said, **policy})),
        canary=Canary("models", "m", "1", "m-00002", baseline, live().template_digest),
        percent=percent,
        window=timedelta(seconds=SECONDS),
        deadline=DEADLINE,
    )
    return one, services, reader


def test_it_looks_twice_in_a_window() -> None:
    assert watch([])[0].pause == SECONDS / 2


def test_each_window_is_one_line_with_counts_evidence_and_what_is_still_needed() -> None:
    one, _, _ = watch([window(1, bad=1)])
    (line,) = one.look(at(11)).lines
    assert line.startswith("30 % window 1: canary 100 requests, 1 errors, stable 300 requests. Keep watching: 1 of 100")
    assert "Evidence against" in line
    assert "more canary requests" in line


def test_a_window_without_data_says_so_and_is_no_zero() -> None:
    one, _, _ = watch([window(1, bad=None, requests=None)])
    assert "canary no data, stable 300 requests" in one.look(at(11)).lines[0]


def test_nothing_new_is_no_line_and_no_end() -> None:
    one, _, _ = watch([window(1)])
    look = one.look(at(5))
    assert (look.lines, look.over) == ((), False)


def test_a_good_canary_is_promoted_and_the_watch_hands_over_what_it_judged() -> None:
    one, _, _ = watch([window(number) for number in range(1, 100)])
    looks = [one.look(at(SECONDS * number + 1)) for number in range(1, 40)]
    decided = next(number for number, look in enumerate(looks, 1) if look.over)
    assert looks[decided - 1].lines[-1].startswith(f"30 % window {decided}: ")
    assert "Promoted" in looks[decided - 1].lines[-1]
    outcome = one.outcome()
    assert outcome["windows"] == [window(number).to_dict() for number in range(1, decided + 1)]
    assert (outcome["final"], outcome["trouble"]) == (False, "")


def test_windows_after_the_one_that_decided_are_not_judged() -> None:
    one, _, _ = watch([window(number, bad=60) for number in range(1, 10)])
    look = one.look(at(91))
    assert look.over
    assert "Rolled back" in look.lines[-1]
    assert len(look.lines) == len(one.outcome()["windows"]) < 9


def test_at_the_deadline_there_are_no_more_windows_and_the_verdict_is_final() -> None:
    one, _, reader = watch([window(1)])
    assert not one.look(DEADLINE - timedelta(seconds=1)).over
    look = one.look(DEADLINE + timedelta(seconds=30))
    assert look.over
    assert look.lines[-1].startswith("No more windows: Cannot tell at the deadline")
    assert one.outcome()["final"] is True
    assert reader.asked[-1] == DEADLINE, "windows after the deadline do not count"


def test_a_decision_in_the_last_look_is_a_decision() -> None:
    one, _, _ = watch([window(number, bad=60) for number in range(1, 10)])
    look = one.look(DEADLINE)
    assert look.over
    assert "Rolled back" in look.lines[-1]
    assert one.outcome()["final"] is False


def test_a_canary_that_was_changed_is_lost_and_its_windows_are_not_judged() -> None:
    for changed in (None, live(50), live(None), live(image="other")):
        one, services, _ = watch([window(number, bad=60) for number in range(1, 10)])
        services.now = changed
        look = one.look(at(91))
        assert look.over
        assert look.lines[0].startswith("Lost: ")
        outcome = one.outcome()
        assert outcome["error"] == "CanaryLost"
        assert look.lines[0] == f"Lost: {outcome['sentence']}"
        assert one.windows == []


def test_windows_read_while_the_cluster_was_away_wait_until_it_is_seen_again() -> None:
    one, services, _ = watch([window(number) for number in range(1, 100)])
    services.now = ClusterUnavailable("connection refused")
    look = one.look(at(31))
    assert (look.lines, look.over) == (("Not judged: connection refused",), False)
    assert one.windows == []
    assert one.look(at(36)).lines == (), "the same trouble is told once"
    services.now = live()
    back = one.look(at(41))
    assert [line.split(":")[0] for line in back.lines] == [f"30 % window {number}" for number in range(1, 5)]
    assert one.trouble == ""


def test_windows_read_while_the_cluster_was_away_never_count_when_the_canary_was_lost_meanwhile() -> None:
    one, services, _ = watch([window(number, bad=60) for number in range(1, 10)])
    services.now = ClusterUnavailable("connection refused")
    one.look(at(91))
    services.now = live(50)
    assert one.look(at(96)).over
    assert one.windows == []
    assert one.outcome()["error"] == "CanaryLost"


def test_prometheus_may_be_away_for_a_while() -> None:
    one, _, reader = watch([window(number) for number in range(1, 100)])
    reader.trouble = MetricsUnavailable("timed out")
    assert one.look(at(11)).lines == ("Not judged: timed out",)
    reader.trouble = MetricsUnavailable("refused")
    assert one.look(at(16)).lines == ("Not judged: refused",)
    reader.trouble = None
    assert len(one.look(at(21)).lines) == 2


def test_a_canary_that_nobody_could_watch_for_two_minutes_is_judged_on_what_there_is() -> None:
    one, _, reader = watch([window(1)])
    one.look(at(11))
    reader.trouble = MetricsUnavailable("timed out")
    began = at(15)
    assert not one.look(began).over
    assert not one.look(began + BLIND - timedelta(seconds=1)).over
    look = one.look(began + BLIND)
    assert look.over
    assert look.lines[-1].startswith("No more windows")
    assert one.outcome() == {"windows": [window(1).to_dict()], "final": True, "trouble": "timed out"}


def test_blindness_is_counted_from_the_last_good_look() -> None:
    one, services, _ = watch([])
    services.now = ClusterUnavailable("refused")
    one.look(at(0))
    services.now = live()
    one.look(at(100))
    services.now = ClusterUnavailable("refused")
    assert not one.look(at(110)).over
    assert not one.look(at(110) + BLIND - timedelta(seconds=1)).over
    assert one.look(at(110) + BLIND).over


def test_the_bake_judges_the_promoted_canary_alone() -> None:
    bad = [window(number, bad=90, alone=True) for number in range(2, 30)]
    one, _, _ = watch([window(1, alone=True), *bad], percent=None)
    first, second = one.look(at(11)), one.look(at(300))
    assert first.lines[0].startswith("promoted window 1: canary 100 requests. ")
    assert "Rolled back" in second.lines[-1]
    again, services, _ = watch([window(1, alone=True)], percent=None)
    services.now = live(30)
    assert again.look(at(11)).lines[0].startswith("Lost: "), "a split came back under the bake"


def test_a_watch_made_anew_comes_to_the_same_verdict() -> None:
    counts = [window(number, bad=number % 3) for number in range(1, 60)]
    patient, _, _ = watch(counts)
    for number in range(1, 60):
        if patient.look(at(SECONDS * number + 1)).over:
            break
    moved, _, _ = watch(counts)
    moved.look(at(SECONDS * 60))
    assert moved.outcome() == patient.outcome()
    assert moved.judge.verdict() == patient.judge.verdict()
