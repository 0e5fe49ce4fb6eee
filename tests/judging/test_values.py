"""Value metrics: Argo's four outcomes, kept apart; a veto, never a promotion."""

from __future__ import annotations

from typing import Any

import pytest

from model_release.judging import Policy, PolicyError, Verdict, Window, judge


def policy(**value: Any) -> Policy:
    return Policy.from_dict(
        {
            "metrics": [{"name": "errors", "max_rate": 0.02}],
            "values": [{"name": "depth", "query": "max(depth)", **value}],
        }
    )


def run(p: Policy, *values: Any, stable: Any = None, requests: int = 200, final: bool = False) -> Verdict:
    """One window for each value; a pair is (canary, stable)."""
    windows = []
    for value in values:
        canary, beside = value if isinstance(value, tuple) else (value, stable)
        windows.append(
            Window.from_dict(
                {
                    "canary": {"requests": requests, "bad": {"errors": 0}},
                    "stable": {"requests": 9 * requests, "bad": {"errors": 0}},
                    "values": {"depth": {"canary": canary, "stable": beside}},
                    "error": "connection refused" if canary is None else None,
                }
            )
        )
    return judge(p, windows, final=final)


def test_a_good_value_lets_the_shares_promote_and_does_not_promote_itself() -> None:
    assert run(policy(max=20), *[3] * 10).decision == "promote"
    assert run(policy(max=20), *[3] * 10, requests=0).decision == "continue"


def test_p5_no_number_of_no_requests_is_no_measurement() -> None:
    """P5: a quantile of nothing is NaN, in the first windows after an opening; NaN beside requests is another thing."""
    nan = float("nan")
    quiet = run(policy(max=500), nan, nan, requests=0)
    assert (quiet.decision, quiet.values[0].state, quiet.values[0].measurements) == ("continue", "pending", 0)
    assert run(policy(max_ratio=1.5), (40, nan), requests=0).values[0].measurements == 0
    assert run(policy(max=500), nan, requests=1).decision == "inconclusive"
    assert run(policy(max=500), *[nan] * 50, requests=0, final=True).decision != "promote"


def test_one_failure_too_many_vetoes() -> None:
    verdict = run(policy(max=20, failures_allowed=2), 31, 3, 31, 31.5, requests=1)
    assert (verdict.decision, verdict.windows_used) == ("rollback", 4)
    assert verdict.values[0].state == "failed"
    assert verdict.reason == ("Rolled back: depth is 31.5, the limit is at most 20; 3 of 4 measurements failed, 2 may.")


def test_exactly_the_allowed_failures_do_not_veto() -> None:
    verdict = run(policy(max=20, failures_allowed=2), 31, 31, requests=1)
    assert verdict.decision == "continue"
    assert (verdict.values[0].state, verdict.values[0].last) == ("pending", "failed")


@pytest.mark.parametrize(
    ("limits", "canary", "stable", "last"),
    [
        ({"max": 20}, 20, None, "successful"),
        ({"max": 20}, 20.1, None, "failed"),
        ({"min": 5}, 4, None, "failed"),
        ({"min": 5, "max": 9}, 7, None, "successful"),
        ({"max": 20}, None, None, "error"),
        ({"max": 20}, "NaN", None, "inconclusive"),
        ({"max": 20}, "+Inf", None, "failed"),
        ({"min": 5}, "-Inf", None, "failed"),
        ({"max_ratio": 1.2}, 12, 10, "successful"),
        ({"max_ratio": 1.2}, 12.1, 10, "failed"),
        ({"max_ratio": 1.2}, 12, None, "inconclusive"),
        ({"max_ratio": 1.2}, 12, "NaN", "inconclusive"),
        ({"max_ratio": 1.2}, None, 10, "error"),
    ],
)
def test_each_measurement_has_one_of_four_outcomes(
    limits: dict[str, float], canary: Any, stable: Any, last: str
) -> None:
    assert run(policy(**limits), (canary, stable), requests=1).values[0].last == last


def test_nan_is_inconclusive_and_never_a_success() -> None:
    verdict = run(policy(max=20), "NaN", *[3] * 10)
    assert (verdict.decision, verdict.windows_used) == ("inconclusive", 1)
    assert verdict.reason.startswith(
        "Cannot tell: depth is not a number; 1 of 1 measurements could not be compared, 0 may"
    )
    assert run(policy(max=20, inconclusive_allowed=1), "NaN", *[3] * 10).decision == "promote"


def test_errors_in_a_row_are_inconclusive_and_name_the_query_s_trouble() -> None:
    verdict = run(policy(max=20), *[None] * 9)
    assert (verdict.decision, verdict.windows_used) == ("inconclusive", 5)
    assert verdict.reason == (
        "Cannot tell: depth could not be measured 5 times in a row, 4 may be (connection refused)."
    )
    # Each measurement starts the row anew, and nothing is promoted on a look that could not measure.
    assert run(policy(max=20), *([None] * 4 + [3]) * 3).decision == "promote"
    assert run(policy(max=20), None, None, None, None).decision == "continue"
    assert run(policy(max=20), *[None] * 3, requests=4000, final=True).reason.startswith(
        "Cannot tell: depth could not be measured 3"
    )


def test_an_observed_value_is_shown_only() -> None:
    verdict = run(policy(max=20, observe=True), *[99] * 10)
    assert verdict.decision == "promote"
    assert verdict.values[0].state == "failed"


def test_a_share_beyond_its_limit_rolls_back_whatever_the_value_says() -> None:
    p = policy(max=20)
    bad = {"canary": {"requests": 100, "bad": {"errors": 90}}, "values": {"depth": {"canary": 1}}}
    assert judge(p, [Window.from_dict(bad)] * 9).decision == "rollback"


def test_relative_values_are_not_judged_where_there_is_no_stable() -> None:
    alone = {"canary": {"requests": 500, "bad": {"errors": 0}}, "values": {"depth": {"canary": 1}}}
    assert judge(policy(max_ratio=1.1), [Window.from_dict(alone)] * 9).decision == "promote"


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, "policy.values[0]: a limit is missing"),
        ({"max": "20"}, "policy.values[0].max: '20' is not a number"),
        ({"max": 1, "min": 2}, "policy.values[0].min"),
        ({"max": 1, "failures_allowed": -1}, "policy.values[0].failures_allowed: -1"),
        ({"max": 1, "limit": 3}, "policy.values[0].limit: unknown field"),
    ],
)
def test_bad_values_are_refused(value: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        policy(**value)
    assert str(refusal.value).startswith(field)
