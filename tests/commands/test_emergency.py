"""The emergency ways, as a person types them, against the sandbox's real API server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_release.cluster import rollout
from model_release.cluster.lease import Held
from model_release.cluster.release import Cause, Phase, Watched
from model_release.commands import main
from model_release.errors import CanaryLost

Run = Callable[..., int]
R1, R2, R3 = (f"digits-predictor-0000{n}" for n in (1, 2, 3))


@pytest.fixture
def run(live: Any) -> Run:
    def command(*words: str) -> int:
        return main([*words, "--kubeconfig", str(live.cluster.kubeconfig)])

    return command


def claimed(live: Any, version: str, percent: int) -> tuple[Any, Any]:
    """A run that is alive, with its canary open, as the lease tells it."""
    baseline, canary = live.stage(version)
    live.shift(canary, percent)
    owner = live.owner("run-1")
    live.leases.acquire("models", "digits", owner)
    facts = {"baseline": baseline, "canary": canary.revision, "template": canary.template, "phase": Phase.OPEN}
    live.leases.update(
        "models", "digits", owner, lambda now: replace(now, **facts, watches=(Watched(percent, "2026-03-01"),))
    )
    return owner, canary


def test_frozen_and_thawed(live: Any, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("freeze", "models/digits", "incident 7") == 0
    assert re.match(r"models/digits is frozen: incident 7 \(\w+, \d{4}-", capsys.readouterr().out)
    held = live.leases.acquire("models", "digits", live.owner("run-1"))
    assert isinstance(held, Held)
    assert "models/digits is frozen: incident 7" in str(held)
    assert run("thaw", "models/digits") == run("thaw", "digits") == 0
    assert not isinstance(live.leases.acquire("models", "digits", live.owner("run-1")), Held)
    assert run("freeze", "digits", "incident 8") == 0
    assert "/run-1 is under way and goes on" in capsys.readouterr().out


def test_a_user_without_a_name_is_a_number(
    live: Any, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod with a user id of its own, which no /etc/passwd knows."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert run("freeze", "models/digits", "incident 9") == 0
    assert f"incident 9 (user {os.getuid()}, " in capsys.readouterr().out
    assert run("thaw", "models/digits") == 0
    live.released("v1")
    claimed(live, "v2", 30)
    assert run("roll-back", "models/digits") == 0
    assert live.door.now == {R1: 100}


def test_a_model_file_that_is_broken_is_in_no_other_models_way(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = shutil.copytree(Path(__file__).parents[2] / "include" / "models", tmp_path / "models")
    (models / "broken.yaml").write_text("model: broken\nrollout: {steps: [30, 10]}\n")
    assert run("freeze", "digits", "incident 10", "--models", str(models)) == 0
    assert run("freeze", "broken", "incident 10", "--models", str(models)) == 1
    said = capsys.readouterr().err
    assert "'broken' is no model of" in said
    assert "broken.yaml:2: rollout.steps" in said


def test_a_release_under_way_loses_its_canary_and_keeps_the_rest_to_itself(
    live: Any, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    live.released("v1")
    owner, canary = claimed(live, "v2", 30)
    assert run("roll-back", "models/digits") == 0
    assert live.door.now == {R1: 100}
    assert f"{R1} has all of the traffic; release_digits run-1 holds the service" in capsys.readouterr().out
    assert live.leases.read("models", "digits").holder == owner.identity
    with pytest.raises(CanaryLost, match="should be at 30 %; the spec says 0 %"):
        rollout.check_untouched(live.get(), canary, 30)
    assert run("roll-back", "models/digits") == 0
    assert live.door.most(R2) == 30


def test_a_release_that_is_just_promoting_is_rolled_back_for_good(live: Any, run: Run) -> None:
    live.released("v1")
    owner, canary = claimed(live, "v2", 50)
    live.leases.update("models", "digits", owner, lambda now: replace(now, phase=Phase.PROMOTED))
    live.promote(canary, 50)
    assert run("roll-back", "models/digits") == 0
    assert live.door.now == {R1: 100}
    claim = live.leases.read("models", "digits").release
    assert not claim.promoted
    assert (claim.phase, claim.cause) == (Phase.CLOSING, Cause.PERSON)
    live.settle(claim.baseline, canary.revision, promoted=claim.promoted)
    live.assert_clean("v1")


@pytest.mark.parametrize("frozen", [False, True])
def test_back_to_the_version_before_when_no_release_is_under_way(live: Any, run: Run, frozen: bool) -> None:
    """Frozen first, as one does in an incident, or not."""
    live.released("v1")
    owner, canary = claimed(live, "v2", 50)
    live.promote(canary, 50)
    live.leases.give_free("models", "digits", owner)
    if frozen:
        assert run("freeze", "models/digits", "v2 is broken") == 0
    mark = len(live.door.history)
    assert run("roll-back", "digits") == 0
    live.assert_clean("v1")
    assert live.door.history[mark] == {R1: 100}
    lease = live.leases.read("models", "digits")
    assert lease.holder is None
    assert (lease.frozen is not None) is frozen
    written = live.get().resource_version
    assert run("roll-back", "digits") == 0
    assert live.get().resource_version == written


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("roll-back", "models/digits"), "models/digits was never released by this project"),
        (("roll-back", "letters"), "'letters' is no model of .*; a service is written namespace/name"),
        (("thaw", "models/digits", "--kubeconfig", "/no/such/file"), "no cluster to talk to: .* --kubeconfig FILE"),
        (("thaw", "models/digits", "--kubeconfig", "/"), "no cluster to talk to: .* --kubeconfig FILE"),
        (("thaw", "models/digits", "--kubeconfig", __file__), "no cluster to talk to: .* --kubeconfig FILE"),
        (("thaw", "../x"), r"'\.\./x' is no service; .* namespace/name"),
        (("freeze", "models/", "why"), "'models/' is no service; .* namespace/name"),
        (("thaw", "a/b/c"), "'a/b/c' is no service; .* namespace/name"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    live: Any, run: Run, words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (main(list(words)) if "--kubeconfig" in words else run(*words)) == 1
    said = capsys.readouterr().err
    assert re.match(rf"model_release: {line}", said)
    assert said.count("\n") == 1
    assert (" -- can be fixed by " in said) is ("never released" in line), "who typed it needs nobody else"


def test_nothing_of_airflow_is_needed() -> None:
    code = "import sys, model_release.commands; print([name for name in sys.modules if name.startswith('airflow')])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "plugins")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_open_canary_is_promoted_and_taken_back_while_no_airflow_lives(
    live: Any, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """No task, trigger or scheduler is there: the release in the lease and the cluster are all that is needed."""
    live.released("v1")
    owner, _ = claimed(live, "v2", 30)
    for _ in range(2):
        assert run("promote", "models/digits", "--reason", "looked at it") == 0
        assert live.door.now == {R2: 100}
        assert f"models/digits: {R2} has all of the traffic" in capsys.readouterr().out
    release = live.leases.read("models", "digits").release
    assert (release.phase, release.owner) == (Phase.PROMOTED, owner)
    assert str(release.word).endswith(": looked at it")
    assert run("rollback", "models/digits", "--reason", "it was not good") == 0
    assert live.door.now == {R1: 100}
    assert live.leases.read("models", "digits").release.cause is Cause.PERSON
