"""Which commit of a repository is fetched, and what of it."""

from __future__ import annotations

import json

import pytest

from model_release.errors import CheckpointError
from sandbox.hub import Hub

from .builders import DAY, MONDAY, NAME, SOURCE, Fetch, asked, checkpoint, safetensors


def test_the_newest_commit_with_what_matters_and_nothing_else(hub: Hub, get: Fetch) -> None:
    hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    second = hub.add_commit(NAME, {"model.safetensors": safetensors(99)}, MONDAY + DAY, "better")
    found = get()
    assert sorted(path.name for path in found.directory.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (found.directory / "model.safetensors").read_bytes() == safetensors(99)
    assert not any(path.is_symlink() for path in found.directory.iterdir())
    assert found.labels == ("MIDDLE", "YOUNG", "OLD")
    assert (found.commit, found.time, found.candidate) == (second, MONDAY + DAY, None)
    assert found.origin == f"{hub.url}/{NAME}@{second}"
    for unneeded in ("README", ".bin", ".py", "checkpoint-100"):
        assert not asked(hub, unneeded)


def test_the_newest_as_of_a_time(hub: Hub, get: Fetch) -> None:
    commits = [hub.add_commit(NAME, checkpoint(60 + n), MONDAY + n * DAY, f"n{n}") for n in range(3)]
    for n, commit in enumerate(commits):
        assert get(not_later_than=MONDAY + n * DAY).commit == commit
        assert get(not_later_than=MONDAY + n * DAY + DAY / 2).commit == commit
    assert get(not_later_than=(MONDAY + DAY).replace(tzinfo=None)).commit == commits[1]
    with pytest.raises(CheckpointError) as none:
        get(not_later_than=MONDAY - DAY)
    assert str(none.value) == (
        f"{hub.url}/{NAME} has no commit on main made by 2026-11-15 12:00:00 UTC; its first is of "
        "2026-11-16 12:00:00 UTC"
    )


def test_a_long_history_is_read_to_its_end(hub: Hub, get: Fetch) -> None:
    first = hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    for n in range(1, 52):
        hub.add_commit(NAME, {"README.md": str(n).encode()}, MONDAY + n * DAY, f"words {n}")
    assert get(not_later_than=MONDAY).commit == first
    assert len(asked(hub, "/commits/")) == 2


def test_a_named_revision(hub: Hub, get: Fetch) -> None:
    first = hub.add_commit(NAME, checkpoint(), MONDAY, "first")
    second = hub.add_commit(NAME, checkpoint(99), MONDAY + DAY, "second")
    branch = hub.add_commit(NAME, checkpoint(77), MONDAY + 2 * DAY, "other", branch="trial/a")
    hub.tag(NAME, "v1", first)
    long_ago = MONDAY - 9 * DAY
    # A commit or tag is that very one, whatever the time; a branch is followed in time.
    assert get({**SOURCE, "revision": first}, not_later_than=long_ago).commit == first
    tagged = get({**SOURCE, "revision": "v1"}, not_later_than=long_ago)
    assert (tagged.commit, tagged.time) == (first, MONDAY)
    assert get({**SOURCE, "revision": "main"}).commit == second
    assert get({**SOURCE, "revision": "trial/a"}).commit == branch
    with pytest.raises(CheckpointError, match="has no commit on trial/a made by"):
        get({**SOURCE, "revision": "trial/a"}, not_later_than=long_ago)
    for unknown in ("v2", "f" * 40):
        with pytest.raises(CheckpointError, match=f"has no revision {unknown}; a branch, a tag or a full commit"):
            get({**SOURCE, "revision": unknown})


def test_shards(hub: Hub, get: Fetch) -> None:
    content = checkpoint()
    shard = content.pop("model.safetensors")
    index = json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}).encode()
    content |= {"model-00001-of-00001.safetensors": shard, "model.safetensors.index.json": index}
    hub.add_commit(NAME, content, MONDAY, "sharded")
    assert (get().directory / "model-00001-of-00001.safetensors").read_bytes() == shard
