"""Which sample pictures are asked for: a folder's or a prefix's, the same ones again for the same release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_release.build import samples
from model_release.build.samples import chosen
from model_release.errors import SpecError, StoreRefused, StoreUnavailable
from model_release.release.collect import Collector
from model_release.store.bucket import Bucket


def none(_: str) -> Any:
    raise AssertionError("a store was asked")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, many in (("phone", 30), ("scan", 70)):
        (tmp_path / "samples" / kind).mkdir(parents=True)
        for number in range(many):
            (tmp_path / "samples" / kind / f"{number}.png").write_bytes(f"{kind} {number}".encode())
    return tmp_path


def read(pictures: list[Any]) -> list[tuple[str, bytes]]:
    return [(kind, get()) for kind, get in pictures]


def test_equal_releases_ask_for_the_same_pictures(folder: Path) -> None:
    one = read(chosen("samples", folder, none, 40, "digits-1"))
    assert one == read(chosen("samples", folder, none, 40, "digits-1"))
    assert one != read(chosen("samples", folder, none, 40, "digits-2"))
    assert len(set(one)) == 40
    assert all(content.decode().startswith(f"{kind} ") for kind, content in one)
    assert len(chosen("samples", folder, none, 500, "digits-1")) == 100


def test_only_pictures_of_a_size_that_clients_may_send(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder / "plain"
    place.mkdir()
    for name, content in {
        "a.JPG": b"1",
        "b.txt": b"1",
        ".c.png": b"1",
        "d.png": b"",
        "e.png": b"12345",
        "f\n.png": b"1",
    }.items():
        (place / name).write_bytes(content)
    (place / "link.png").symlink_to(folder / "samples" / "scan" / "1.png")
    (place / "away").symlink_to(folder / "samples")
    monkeypatch.setattr(samples, "LARGEST_PICTURE", 4)
    assert read(chosen("plain", folder, none, 9, "x")) == [(".", b"1")]


def test_what_is_gone_or_cannot_be_read_is_told_apart(folder: Path) -> None:
    pictures = chosen("samples", folder, none, 100, "x")
    for path in (folder / "samples").rglob("*.png"):
        path.unlink()
    assert {get() for _, get in pictures} == {None}
    for path in (folder / "samples" / kind / f"{number}.png" for kind in ("phone", "scan") for number in range(70)):
        path.mkdir()
    with pytest.raises(StoreUnavailable, match=r"\d+\.png cannot be read: Is a directory"):
        pictures[0][1]()


@pytest.mark.parametrize(("place", "why"), [("nowhere", "is no folder"), ("empty", "holds no picture")])
def test_a_place_without_any(folder: Path, place: str, why: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(SpecError, match=why):
        chosen(place, folder, none, 9, "x")


def test_a_prefix_is_read_as_a_folder_is(s3: Any, folder: Path) -> None:
    for path in (folder / "samples").rglob("*.png"):
        key = f"samples/{path.relative_to(folder / 'samples').as_posix()}"
        s3.client.put_object(Bucket="models", Key=key, Body=path.read_bytes())
    here = read(chosen("samples", folder, none, 20, "digits-1"))
    assert read(chosen("s3://models/samples/", folder, lambda _: s3.client, 20, "digits-1")) == here
    taken = b"\x89PNG of a user"
    assert Collector(Bucket(s3.client, "s3://models/collected/"), most=1).take(taken)
    assert Collector(Bucket(s3.client, "s3://models/collected/"), most=1).take(taken + b"'s next")
    assert read(chosen("s3://models/collected/", folder, lambda _: s3.client, 20, "x")) == [(".", taken + b"'s next")]
    ((_, gone),) = chosen("s3://models/collected/", folder, lambda _: s3.client, 20, "x")
    assert Collector(Bucket(s3.client, "s3://models/collected/"), most=1).take(taken + b"'s last")
    assert gone() is None, "the collector has removed it since it was listed"
    with pytest.raises(SpecError, match="holds no picture"):
        chosen("s3://models/other/", folder, lambda _: s3.client, 20, "x")
    with pytest.raises(StoreRefused, match="no such bucket"):
        chosen("s3://nobodys/samples/", folder, lambda _: s3.client, 20, "x")
