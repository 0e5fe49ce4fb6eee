"""`python -m model_release calibrate`, as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_release import metrics
from model_release.commands import calibrate, main
from model_release.judging import Past
from model_release.metrics import Before

DIGITS = Path(__file__).resolve().parents[2] / "include" / "models" / "digits.yaml"
LIVE = SimpleNamespace(stable_revision="digits-predictor-00001", started="2026-02-01T00:00:00Z")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copy(DIGITS, tmp_path)
    return tmp_path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says what Prometheus has counted on stable, in windows of 60 requests."""

    def say(windows: int = 720, trouble: str = "") -> None:
        sides = [{"requests": 60, "bad": {"errors": int(i % 20 == 0), "slow": 0}} for i in range(windows)]
        found = Before(Past.from_dict({"windows": sides}), 20.0 if windows else None, windows, trouble)
        monkeypatch.setattr(metrics, "read_before", lambda *_, **__: found)
        monkeypatch.setattr(calibrate, "around", lambda *_: (object(), LIVE, []))

    say()
    return say


def test_it_proposes_and_writes_nothing_unasked(known: Any, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "digits", "--models", str(models)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "digits on models/digits"
    assert lines[1].startswith("stable: 0.0833 % errors, ")
    assert lines[1].endswith("from 720 windows, at 20 requests a second")
    assert lines[2].startswith("errors: stable is at 0.083 %, in bursts of 1; the limit ")
    assert lines[-1] == "Nothing was written: --write does it."
    assert (models / "digits.yaml").read_text() == DIGITS.read_text()


def test_asked_to_it_writes_into_the_file_once(known: Any, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = models / "digits.yaml"
    assert main(["calibrate", "digits", "--models", str(models), "--write", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    errors = next(one for one in told["proposals"] if one["metric"] == "errors")
    assert f"max_rate: {errors['to']:g}" in file.read_text()
    assert told["written"][0].startswith(f"{file}:")
    before, after = DIGITS.read_text().splitlines(), file.read_text().splitlines()
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert 1 <= len(changed) <= 2
    assert all("max_rate" in line for line in changed)
    assert main(["calibrate", "digits", "--models", str(models), "--write"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("The model file says that already.")
    assert file.read_text().splitlines() == after


@pytest.mark.parametrize(
    ("windows", "words"),
    [(0, "there is no past to calibrate by: "), (10, "600 requests in 10 windows are too little to set a limit by")],
)
def test_by_too_little_nothing_is_proposed(
    known: Any, models: Path, capsys: pytest.CaptureFixture[str], windows: int, words: str
) -> None:
    known(windows)
    assert main(["calibrate", "digits", "--models", str(models), "--write"]) == 1
    assert words in capsys.readouterr().err
    assert (models / "digits.yaml").read_text() == DIGITS.read_text()


def test_a_service_that_cannot_be_reached_has_no_past(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "around", lambda *_: (None, None, ["Prometheus was not asked: refused"]))
    assert main(["calibrate", "digits", "--models", str(models)]) == 1
    assert "there is no past to calibrate by: Prometheus was not asked: refused" in capsys.readouterr().err
