"""Without the hub: from the cache, or one line that says what is not in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model_release.build.hub import HubAccess
from model_release.errors import CheckpointError
from sandbox.hub import Hub

from .builders import DAY, MONDAY, NAME, SOURCE, TOKEN, Fetch, checkpoint


def test_without_the_hub_the_same_question_has_the_same_answer(
    hub: Hub, get: Fetch, offline: Callable[[], None]
) -> None:
    first = hub.add_commit(NAME, checkpoint(60), MONDAY, "first")
    second = hub.add_commit(NAME, checkpoint(70), MONDAY + DAY, "second")
    hub.tag(NAME, "v1", first)
    questions: list[dict[str, Any]] = [
        {},
        {"not_later_than": MONDAY + DAY / 2},
        {"source": {**SOURCE, "revision": second}},
        {"source": {**SOURCE, "revision": "v1"}, "not_later_than": MONDAY - DAY},
    ]
    answers = [get(**question) for question in questions]
    third = hub.add_commit(NAME, checkpoint(80), MONDAY + 2 * DAY, "never fetched")
    hub.stop()
    offline()
    assert [get(**question) for question in questions] == answers
    with pytest.raises(CheckpointError, match="has no commit on main made by"):
        get(not_later_than=MONDAY - DAY)
    for revision in (third, "v2"):
        with pytest.raises(CheckpointError, match=f"HF_HUB_OFFLINE is set, and the cache .* does not know {revision}"):
            get({**SOURCE, "revision": revision})


@pytest.mark.parametrize("cut", ["", '{"moves": true, "commits": [["', "[]"])
def test_without_the_hub_a_history_that_was_cut_is_as_good_as_none(
    cut: str, hub: Hub, get: Fetch, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that lost its power leaves it."""
    first = hub.add_commit(NAME, checkpoint(60), MONDAY, "first")
    found = get()
    (memory,) = (access.home or Path()).rglob("*@main.json")
    memory.write_text(cut)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"does not know main of .*; let it be fetched once"):
        get()
    assert get({**SOURCE, "revision": first}).fingerprint == found.fingerprint, "by the snapshot that is there"
    monkeypatch.undo()
    assert get() == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get() == found


def test_without_the_hub_a_commit_that_is_known_but_not_there(
    hub: Hub, get: Fetch, offline: Callable[[], None], tmp_path: Path
) -> None:
    hub.add_commit(NAME, checkpoint(60), MONDAY, "known by the history only")
    hub.add_commit(NAME, checkpoint(70), MONDAY + DAY, "fetched")
    get()
    offline()
    with pytest.raises(CheckpointError, match=r"in the cache .* \(HF_HUB_OFFLINE is set\) is not there; let it be"):
        get(not_later_than=MONDAY)
    for weights in (tmp_path / "home" / "hub").rglob("model.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match=r"\(HF_HUB_OFFLINE is set\) lacks model.safetensors"):
        get()


def test_without_the_hub_with_a_cache_that_somebody_else_filled(
    hub: Hub, get: Fetch, access: HubAccess, offline: Callable[[], None]
) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    assert access.home
    snapshot_download(NAME, endpoint=hub.url, cache_dir=access.home / "hub", tqdm_class=None)
    offline()
    found = get(not_later_than=datetime.now(UTC) + DAY)
    assert (found.commit, found.time) == (commit, None)
    assert get({**SOURCE, "revision": commit}, not_later_than=MONDAY).commit == commit
    with pytest.raises(CheckpointError, match=f"does not tell whether {commit} of .* was made by 2026-11-16 12:00:00"):
        get(not_later_than=MONDAY)


def test_the_environment_names_hub_token_cache_and_offline(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    hub.protect(NAME, token=TOKEN)
    program = (
        "import sys; from pathlib import Path; from model_release.build.source import fetch;"
        f"print(fetch({{'hub': {NAME!r}}}, Path(sys.argv[1])).commit)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "there")],
            env={**environment, **more},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == commit, done.stderr
        assert "%|" not in done.stderr
        assert TOKEN not in done.stderr
        hub.answer_with(500, times=99)
