"""`python -m model_release plan`, as a person types it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model_release import metrics
from model_release.commands import main, plan
from model_release.errors import MetricsUnavailable
from model_release.judging import Past
from model_release.metrics import Before


class Live:
    """An InferenceService, as far as a plan looks at it."""

    stable_revision, started = "digits-predictor-00001", "2026-02-01T00:00:00Z"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says how many requests a second Prometheus has counted on stable."""

    def say(per_second: float, bad: int = 0) -> None:
        windows = [{"requests": max(1, round(3 * per_second)), "bad": {"errors": bad, "slow": 0}}] * 720
        found = Before(Past.from_dict({"windows": windows}), per_second, 720)
        monkeypatch.setattr(metrics, "read_before", lambda *_, **__: found)
        monkeypatch.setattr(plan, "around", lambda *_: (object(), Live(), []))

    return say


def test_it_says_what_a_release_needs(known: Any, capsys: pytest.CaptureFixture[str]) -> None:
    known(20)
    assert main(["plan", "digits"]) == 0
    first, past, needs, *_ = capsys.readouterr().out.splitlines()
    assert first == "digits on models/digits"
    assert past.strip() == "stable: 0 % errors, bursts of 1; 0 % slow, bursts of 1, from 720 windows"
    assert needs.strip().startswith("At 20 requests a second and 25 and 50 % of them a good canary needs about ")


def test_what_the_preflight_would_refuse_ends_with_1_and_one_line(
    known: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    known(0.1)
    assert main(["plan", "digits"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("digits on models/digits\n")
    assert len(said.err.splitlines()) == 1
    assert "or approval: on_inconclusive" in said.err


def test_programs_get_json_whatever_the_end(known: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for per_second, code in ((20, 0), (0.1, 1)):
        known(per_second)
        assert main(["plan", "digits", "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["service"], told["possible"]) == ("models/digits", code == 0)
        assert [way["kind"] for way in told["ways"]]


def test_traffic_can_be_asked_about(known: Any, capsys: pytest.CaptureFixture[str]) -> None:
    known(0.1)
    assert main(["plan", "digits", "--requests-per-second", "40"]) == 0
    assert "At 40 requests a second" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "digits", "--requests-per-second", "-3"])
    assert "-3: write requests a second, 0.5 or 12 for example" in capsys.readouterr().err


def test_without_a_cluster_and_without_prometheus_it_says_so_and_what_it_assumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class World:
        def prometheus(self) -> Any:
            raise MetricsUnavailable("Prometheus at http://p:9090 cannot be reached")

        def cluster(self) -> Any:
            raise KeyError("no kubeconfig")

    monkeypatch.setattr("model_release.tasks.preflight.world", lambda *_: World())
    assert main(["plan", "digits"]) == 0
    said = capsys.readouterr().out
    assert "Prometheus was not asked: Prometheus at http://p:9090 cannot be reached" in said
    assert "the cluster was not asked: 'no kubeconfig'" in said
    assert "no past: what is stable is not known; assumed are 10 requests a second and bad requests one by one" in said
