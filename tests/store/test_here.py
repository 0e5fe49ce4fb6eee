"""Builds that stay on the machine: as safe as those that go through the store."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.conftest import SPEC

from model_release.errors import SpecError, StoreRefused, VersionDamaged
from model_release.spec import ModelSpec
from model_release.store.here import IDLE, Here
from model_release.store.store import Store
from model_release.tasks import connections


def made(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def store(here: Here) -> Store:
    """With no S3 behind it: nothing of this may ask one."""
    return Store(None, "s3://models/digits/", here=here)


def test_a_build_goes_from_task_to_task_without_the_store(tmp_path: Path) -> None:
    one = store(Here(tmp_path / "builds", 10**9))
    for text in ("first", "again"):
        one.stash("b1/export", made(tmp_path / text, weights=text, more__labels="x"))
        one.unstash("b1/export", tmp_path / "there")
        assert content(tmp_path / "there") == {"weights": text, "more/labels": "x"}
    assert (tmp_path / "builds").stat().st_mode & 0o777 == 0o700


def test_what_is_asked_for_comes_alone_and_known_digests_are_what_it_is_held_to(tmp_path: Path) -> None:
    one, right = store(Here(tmp_path / "builds", 10**9)), hashlib.sha256(b"right").hexdigest()
    one.stash("b1/export", made(tmp_path / "a", weights="right", labels="x"))
    assert one.unstash("b1/export", tmp_path / "there", only=["weights"]) == {"weights": right}
    assert content(tmp_path / "there") == {"weights": "right"}
    one.stash("b2/export", made(tmp_path / "b", weights="wrong", labels="x"), {"weights": right})
    with pytest.raises(VersionDamaged, match="weights was changed after it was stashed"):
        one.unstash("b2/export", tmp_path / "there")


def test_a_build_that_is_missing_or_changed_is_told(tmp_path: Path) -> None:
    one = store(Here(tmp_path / "builds", 10**9))
    with pytest.raises(VersionDamaged, match=r"holds no finished build .*clear task resolve"):
        one.unstash("b1/export", tmp_path / "there")
    one.stash("b1/export", made(tmp_path / "a", weights="right"))
    (tmp_path / "builds" / "b1" / "export" / "weights").write_text("wrong")
    with pytest.raises(VersionDamaged, match="weights was changed after it was stashed"):
        one.unstash("b1/export", tmp_path / "there")
    (tmp_path / "builds" / "b1" / "export" / "weights").unlink()
    with pytest.raises(VersionDamaged, match="weights is gone"):
        one.unstash("b1/export", tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(SpecError, match="is no name for a build"):
        one.stash("../b1", tmp_path / "a")


def test_another_file_system_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other)
    one = store(Here(tmp_path / "builds", 10**9))
    one.stash("b1/export", made(tmp_path / "a", weights="right"))
    one.unstash("b1/export", tmp_path / "there")
    assert content(tmp_path / "there") == {"weights": "right"}


def test_the_oldest_gives_way_and_never_one_that_is_under_way(tmp_path: Path) -> None:
    lines: list[str] = []
    one = store(Here(tmp_path / "builds", 450, lines.append))

    def put(build: str, ago: float) -> None:
        one.stash(f"{build}/export", made(tmp_path / build, weights="x" * 100))
        then = time.time() - ago
        os.utime(tmp_path / "builds" / build / "export" / ".stash.json", (then, then))

    def there() -> list[str]:
        return sorted(path.name for path in (tmp_path / "builds").iterdir())

    # Each has 100 bytes and its record, of 80.
    put("oldest", 3 * IDLE)
    put("older", 2 * IDLE)
    put("young", 10)
    assert there() == ["older", "young"]
    assert [line.split()[1] for line in lines] == ["oldest"]
    for build in ("new", "newer"):
        put(build, 0)
    assert there() == ["new", "newer", "young"], "more than there is room for: somebody is on the way with each"


def test_what_another_worker_takes_away_meanwhile_is_no_trouble_of_this_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed, and gone before it is looked at."""
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*listed(self, pattern), self / "gone" / ".stash.json"])
    one = store(Here(tmp_path / "builds", 10**9))
    one.stash("b1/export", made(tmp_path / "a", weights="right"))
    one.unstash("b1/export", tmp_path / "there")
    assert content(tmp_path / "there") == {"weights": "right"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreRefused, match=r"cannot be left there.*MODEL_RELEASE_BUILDS names a folder"):
        Here(tmp_path / "file", 1).stash("b1", made(tmp_path / "a", weights="x"))


def test_workers_say_where_and_pods_use_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "s3", lambda: None)
    spec = ModelSpec.model_validate(SPEC)
    pods = ModelSpec.model_validate({**SPEC, "build": {"in": "pod", "image": "x:1"}})
    assert connections.builds(spec)._here is None
    monkeypatch.setenv("MODEL_RELEASE_BUILDS", str(tmp_path))
    assert connections.builds(spec)._here is not None
    assert connections.builds(pods)._here is None
    monkeypatch.setenv("MODEL_RELEASE_BUILDS_GB", "much")
    with pytest.raises(SpecError, match="MODEL_RELEASE_BUILDS_GB is 'much'; a number of gigabytes"):
        connections.builds(spec)
