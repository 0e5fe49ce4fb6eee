"""`make release STORY=wrong`: a version that is quick, without errors, and wrong for larger pictures. Samples that are
like the test images tell nothing of it, and the labels that users get do; samples that are like what users send end its
release before any user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from .conftest import PROJECT
from .models import records
from .witnesses import User

pytestmark = [pytest.mark.e2e, pytest.mark.walk]

NAME = "digits-scans"
# R3 is the stable version's template written back, R4 the wrong version again, R5 the stable one's once more.
R1, R2, R3, R5 = (f"{NAME}-predictor-0000{number}" for number in (1, 2, 3, 5))


@pytest.fixture(scope="module")
def told(live: Any) -> tuple[int, list[dict[str, Any]], set[tuple[str, int]]]:
    from sandbox.digits import images

    user = User(live.status["parts"]["envoy"]["url"], images(1)[0], NAME)
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
    user.start()
    try:
        command = [sys.executable, "-m", "sandbox", "release", "--story", "wrong"]
        options = ["--state", str(live.state), "--airflow", str(live.project)]
        done = subprocess.run(
            [*command, *options], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
    finally:
        user.end()
        live.sandbox("load", "--end")
    print(done.stdout, done.stderr)
    return done.returncode, records(live, NAME), {(answer.revision, answer.status) for answer in user.answers}


def test_it_ends_as_its_story_says(told: Any) -> None:
    code, released, _ = told
    assert code == 0
    assert [record["outcome"] for record in released] == ["first", "rolled_back", "failed"]
    assert [record["cause"] for record in released][1:] == ["evidence", "before traffic"]


def test_samples_like_the_test_images_find_nothing_and_the_labels_that_users_get_do(told: Any) -> None:
    _, (_, record, _), met = told
    assert (record["shadow"]["decision"], record["shadow"]["passed"]) == ("within", True)
    print(record["reason"])
    assert re.match(r"Rolled back: \d ", record["reason"]), "it names the label that moved"
    assert "of the answers" in record["reason"]
    windows = [window for step in record["steps"] for window in step["windows"]]
    assert sum(window["canary"]["bad"]["errors"] or 0 for window in windows) == 0, "it answers everything"
    assert met <= {(R1, 200), (R2, 200), (R3, 200), (R5, 200)}


def test_samples_like_what_users_send_end_it_before_any_user(told: Any) -> None:
    _, (*_, record), _ = told
    assert record["shadow"]["decision"] == "beyond"
    assert [entry["percent"] for entry in record["traffic"]] == [0, 0]
    shares = {one["folder"]: one["changed"] / one["compared"] for one in record["shadow"]["folders"]}
    assert shares["phone"] > 0.5 > 0.2 > shares["ordinary"]
