"""The judge's contract: what goes in, what comes out, and that it needs nothing but NumPy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model_release.judging import EvidenceError, Judge, Policy, PolicyError, Window, judge

from .builders import policy, window, windows

PLUGINS = Path(__file__).parents[2] / "plugins"

EXAMPLE = {
    "policy": {
        "false_rollback": 0.01,
        "false_promotion": 0.05,
        "min_requests": 200,
        "traffic": 0.1,
        "metrics": [
            {"name": "errors", "max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005},
            {"name": "slow", "max_rate": 0.05},
        ],
    },
    "windows": [
        {
            "canary": {"requests": 20, "bad": {"errors": 1, "slow": 0}},
            "stable": {"requests": 180, "bad": {"errors": 2, "slow": 3}},
        }
    ],
    "final": False,
}


def run(*arguments: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_release.judging", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=PLUGINS,
        check=False,
    )


def test_the_example_of_the_contract_is_answered_as_it_says() -> None:
    done = run(text=json.dumps(EXAMPLE))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["decision"] == "continue"
    assert said["windows_used"] == 1
    errors = said["metrics"][0]
    assert errors["needed_against"] == 200.0
    assert errors["needed_for"] == 40.0  # half of β is kept for the look at the deadline
    assert errors["canary"] == {"requests": 20, "bad": 1}
    assert errors["stable"] == {"requests": 180, "bad": 2}
    assert errors["state"] == "undecided"
    assert 1 < errors["evidence_against"] < 200
    assert 0 < errors["evidence_for"] < 1
    assert errors["requests_needed"] > 0


def test_lines_are_answered_line_by_line() -> None:
    final = {**EXAMPLE, "final": True}
    done = run("--lines", text=f"{json.dumps(EXAMPLE)}\n\n{json.dumps(final)}\n")
    assert [json.loads(line)["decision"] for line in done.stdout.splitlines()] == ["continue", "inconclusive"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"windows": [{"canary": {"requests": -1, "bad": {}}}]}, "windows[0].canary.requests: -1 is negative"),
        ({"windows": [{"canary": {"requests": 5, "bad": {"errors": 6}}}]}, "windows[0].canary.bad.errors: 6 bad of 5"),
        ({"windows": [{"canary": {"requests": 5, "bad": {"eror": 1}}}]}, "windows[0].canary.bad.eror: the policy has"),
        ({"windows": [{"canary": {"requests": 0.5, "bad": {}}}]}, "windows[0].canary.requests: 0.5 is not a whole"),
        ({"windows": [{"canary": {"requests": True, "bad": {}}}]}, "windows[0].canary.requests: True is not a count"),
        ({"windows": [{"canary": {"requests": 2**60}}]}, "windows[0].canary.requests"),
        ({"windows": [{"stable": {"requests": 3}}]}, "windows[0].canary: is missing"),
        ({"windows": [{"canary": {"requests": 3}, "start": "noon"}]}, "windows[0].start: 'noon' is not an ISO 8601"),
        ({"windows": {"canary": {}}}, "windows: a list of windows"),
        ({"policy": {"metrics": [{"name": "errors", "max_rate": 1.5}]}}, "policy.metrics[0].max_rate: 1.5"),
        ({"policy": {"metrics": [{"name": "errors"}]}}, "policy.metrics[0]: a limit is missing"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1, "rate": 1}]}}, "policy.metrics[0].rate: unknown"),
        ({"policy": {"metrics": []}}, "policy.metrics: no metric decides"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1, "observe": True}]}}, "policy.metrics: no metric"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1}] * 2}}, "policy.metrics[1].name: 'e' is there twice"),
        ({"policy": {"metrics": [{"name": "e", "floor": 0.1, "max_rate": 0.1}]}}, "policy.metrics[0].floor"),
        ({"policy": {"metrics": [{"name": "e", "max_ratio": 30, "floor": 0.1}]}}, "policy.metrics[0].floor"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1}], "traffic": 2}}, "policy.traffic: 2"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1}], "false_rollback": 0}}, "policy.false_rollback: 0"),
        ({"policy": {"metrics": [{"name": "e", "max_rate": 0.1}], "min_requests": 1.5}}, "policy.min_requests: 1.5"),
        ({"policy": {"metrics": "errors"}}, "policy.metrics: a list"),
        ({"policy": None}, "policy: a mapping"),
        ({"final": "yes"}, "final: 'yes'"),
        ({"more": 1}, "more: unknown field"),
    ],
)
def test_bad_input_is_refused_with_one_line_that_names_the_field(change: dict[str, object], field: str) -> None:
    done = run(text=json.dumps({**EXAMPLE, **change}))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(field)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"policy": NaN}'])
def test_what_is_no_document_is_refused_in_one_line(text: str) -> None:
    done = run(text=text)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_bad_line_says_which() -> None:
    done = run("--lines", text=f"{json.dumps(EXAMPLE)}\nnonsense\n")
    assert done.returncode == 2
    assert done.stderr.startswith("line 2: ")
    assert len(done.stdout.splitlines()) == 1


def test_nothing_but_numpy_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules); import model_release.judging, model_release.judging.__main__;"
        "print('\\n'.join({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PLUGINS, check=True).stdout
    foreign = set(out.split()) - set(sys.stdlib_module_names) - {"model_release"}
    assert {name for name in foreign if not name.startswith("_")} == {"numpy"}


def test_judging_stops_at_the_first_window_that_decides() -> None:
    p = policy(max_rate=0.02)
    bad = [window((20, 10), at=i) for i in range(9)]
    good = [window((1000, 0), at=i) for i in range(9, 60)]
    verdict = judge(p, bad + good)
    assert verdict.decision == "rollback"
    assert verdict.windows_used < 9
    assert judge(p, bad[: verdict.windows_used]) == verdict
    assert judge(p, bad[: verdict.windows_used - 1]).decision == "continue"


def test_one_window_at_a_time_says_the_same_as_all_at_once() -> None:
    p = policy(max_rate=0.02, max_ratio=1.5, floor=0.005, traffic=0.1, warm_up=2, indifference=2)
    counts = windows([((20 + i % 7, int(i % 9 == 0)), (180, i % 3)) for i in range(120)])
    one = Judge(p)
    for n, w in enumerate(counts, start=1):
        said = one.add(w)
        assert said == judge(p, counts[:n])
        if one.decided:
            break
    for _ in range(3):
        assert one.add(counts[-1]) == said


def test_policies_and_windows_survive_json() -> None:
    p = Policy.from_dict({**EXAMPLE["policy"], "values": [{"name": "depth", "max": 4.0, "query": "q"}]})
    assert Policy.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    w = Window.from_dict(
        {
            "start": "2026-03-01T02:00:00Z",
            "end": "2026-03-01T02:00:10Z",
            "canary": {"requests": None, "bad": {"errors": None}},
            "stable": {"requests": 5, "bad": {"errors": 1}},
            "values": {"depth": {"canary": 3.5, "stable": None}},
            "error": "422 for sum(",
        }
    )
    assert Window.from_dict(json.loads(json.dumps(w.to_dict()))) == w


def test_the_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match=r"policy\.steps"):
        Policy.from_dict({"metrics": [{"name": "e", "max_rate": 0.1}], "steps": 0})
    with pytest.raises(EvidenceError, match=r"windows\[0\]"):
        judge(policy(max_rate=0.1), [{"canary": {}}])
    with pytest.raises(PolicyError, match=r"false_promotion"):
        policy(max_rate=0.1, false_promotion=0.9)
