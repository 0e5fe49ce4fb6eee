"""The triggerer's clock is set back and forth while it watches: a real one, by a library between it and the kernel."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.patience import until

from .models import ASKED
from .scene import Scene

pytestmark = pytest.mark.faults

SOURCE = Path(__file__).with_name("clock.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", made, SOURCE, "-ldl"], check=True)
    return made


def test_clock_set_back_and_then_an_hour_ahead(scene: Scene, library: Path) -> None:
    """Back: no window is over yet, so nothing is judged. Ahead: the deadline is over, and windows that nobody has lived
    through are no evidence."""
    stable = scene.stable
    offset = library.with_name("offset")
    offset.write_text("0")
    scene.kill("triggerer")
    scene.restart("triggerer", LD_PRELOAD=str(library), CLOCK_OFFSET=str(offset))
    try:
        one = scene.release(dag=ASKED)
        canary = one.watching()
        until(lambda: "window 1: " in one.log("canary"), lambda: "nobody looks")
        offset.write_text("-3600")
        time.sleep(10)
        seen = one.log("canary").count("% window ")
        time.sleep(6)
        assert one.state_of("canary") == "deferred"
        assert one.log("canary").count("% window ") == seen, "a window was counted that is not over by this clock"
        offset.write_text("3600")
        assert one.ended() == "failed"
    finally:
        offset.write_text("0")
        scene.kill("triggerer")
        scene.restart("triggerer")
    assert one.sentence().startswith("rolled_back: ")
    end = scene.end(one, stable)
    counted = sum(window["canary"]["requests"] or 0 for window in one.record()["steps"][0]["windows"])
    assert 0 < counted <= end.answers[canary].total(), "the judge counted requests that nobody sent"
    scene.row("clock of the triggerer set back, then ahead", "watch", one, stable, end)
