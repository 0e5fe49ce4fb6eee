"""Calibration on a service's own past."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from model_release.judging import EvidenceError, Window
from model_release.judging.__main__ import main
from model_release.judging.calibrate import calibrate
from model_release.judging.simulate import bad_requests

from .builders import policy, window


def past(burst: float, length: int = 120) -> list[Window]:
    rng = np.random.default_rng(3)
    bad = bad_requests(rng, np.full(length, 400.0), 0.01, burst, 40)
    return [window((0, 0), (400, int(b)), at=i) for i, b in enumerate(bad)]


def test_a_quiet_past_gives_few_false_alarms_and_a_design_effect_of_about_one() -> None:
    found = calibrate(policy(max_rate=0.05, max_ratio=1.5, floor=0.01), past(1), releases=500)
    assert found.false_rollbacks <= 0.01
    assert found.false_rollbacks_interval[0] <= found.false_rollbacks <= found.false_rollbacks_interval[1]
    assert 0.7 < (found.design_effect["errors"] or 0) < 1.4
    assert found.promoted > 0.3
    assert found.reason.startswith("On 120 past windows, ")


def test_a_bursty_past_is_seen() -> None:
    found = calibrate(policy(max_rate=0.05), past(10), releases=200)
    assert (found.design_effect["errors"] or 0) > 5
    assert "Design effect (1 = independent requests): errors" in found.reason


def test_a_policy_that_cries_wolf_is_caught() -> None:
    found = calibrate(policy(max_ratio=0.2, floor=0.0001), past(1), releases=200)
    assert found.false_rollbacks > 0.9
    assert "of 200 releases of the same revision would have been rolled back (" in found.reason


def test_the_same_seed_gives_the_same_answer() -> None:
    assert calibrate(policy(max_rate=0.05), past(3), releases=100) == calibrate(
        policy(max_rate=0.05), past(3), releases=100
    )


def test_gaps_in_the_past_stay_gaps() -> None:
    gap = window((0, 0), (None, None))
    found = calibrate(policy(max_rate=0.05), [*past(1)[:50], gap, gap], releases=50)
    assert (found.windows, found.requests) == (52, 20_000)


def test_counts_beyond_a_billion_are_split_too() -> None:
    found = calibrate(policy(max_rate=0.05), [window((0, 0), (4 * 10**9, 10**7))] * 3, releases=20)
    assert found.requests == 12 * 10**9


@pytest.mark.parametrize("windows", [[], [window((0, 0), (0, 0))], [window((None, None), (None, None))]])
def test_a_past_without_requests_is_refused(windows: list[Window]) -> None:
    with pytest.raises(EvidenceError, match="no window holds a request"):
        calibrate(policy(max_rate=0.05), windows)


def test_a_metric_that_was_never_counted_is_refused() -> None:
    with pytest.raises(EvidenceError, match="none counts errors"):
        calibrate(policy(max_rate=0.05), [window((0, 0), (100, None))])


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"policy": policy(max_rate=0.05).to_dict(), "windows": [w.to_dict() for w in past(1, 40)]}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asked)))
    assert main(["--calibrate"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["releases"] == 2000
    assert "reason" in said
