"""Labelled images in a folder and in S3: what counts, what is refused, and what the digest covers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from model_release.build.evaluation.images import from_folder, from_store, labelled
from model_release.errors import SpecError, StoreRefused, StoreUnavailable

CONTENT = {"cat/1.png": b"one", "cat/more/2.JPG": b"two", "tench, Tinca tinca/1.webp": b"three"}


def fill(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def quiet(_: str) -> None:
    """A log that nobody reads."""


def test_the_first_folder_is_the_label(tmp_path: Path) -> None:
    found = from_folder(fill(tmp_path), "faces", quiet)
    assert found.truth == {
        "cat/1.png": "cat",
        "cat/more/2.JPG": "cat",
        "tench, Tinca tinca/1.webp": "tench, Tinca tinca",
    }
    assert found.support == {"cat": 2, "tench, Tinca tinca": 1}
    assert found.bring(tmp_path / "scratch", quiet) == [(name, tmp_path / name) for name in found.truth]
    assert found.record == {"uri": "faces", "digest": found.digest, "digest_of": "contents", "images": 3}


def test_a_labels_folder_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", {"1.png": b"one"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    assert from_folder(tmp_path / "data", "faces", quiet).truth == {"cat/1.png": "cat"}


def test_the_digest_covers_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    digest = from_folder(fill(tmp_path / "1"), "faces", quiet).digest
    assert from_folder(fill(tmp_path / "2", {**CONTENT, "cat/notes.txt": b"x"}), "elsewhere", quiet).digest == digest
    assert from_folder(fill(tmp_path / "3", {**CONTENT, "cat/1.png": b"other"}), "faces", quiet).digest != digest
    moved = {name.replace("cat/1", "tench, Tinca tinca/9"): data for name, data in CONTENT.items()}
    assert from_folder(fill(tmp_path / "4", moved), "faces", quiet).digest != digest


def test_what_is_no_image_is_left_out_and_named(tmp_path: Path) -> None:
    lines: list[str] = []
    extra = {"README.md": b"", "cat/list.csv": b"", ".DS_Store": b"", "cat/.hidden.png": b"", ".git/x/1.png": b""}
    assert len(from_folder(fill(tmp_path, {**CONTENT, **extra}), "faces", lines.append).truth) == 3
    assert [line[:53] for line in lines] == ["faces: left out README.md, cat/list.csv, not named lik"[:53]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "faces holds no images; right would be a folder of them for each label"),
        ({"cat/notes.txt": b""}, "faces holds no images"),
        ({"cat/1.png": b"", "dog/notes.txt": b""}, "faces: the folder of dog holds no images; fill it"),
        ({"cat/1.png": b"", "2.png": b""}, r"faces: 2\.png lies in no folder named by its label; .* LABEL/2\.png"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_folder(fill(tmp_path, content), "faces", quiet)


def test_an_empty_folder_of_a_label_is_refused(tmp_path: Path) -> None:
    (fill(tmp_path) / "dog").mkdir()
    with pytest.raises(SpecError, match="the folder of dog holds no images"):
        from_folder(tmp_path, "faces", quiet)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="absent is no folder; it must hold a folder of images for each label"):
        labelled("absent", tmp_path, pytest.fail, quiet)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """As an old archive of pictures leaves it, made where é was one byte."""
    Path(os.fsdecode(os.fsencode(fill(tmp_path) / "cat") + b"/caf\xe9.jpg")).write_bytes(b"four")
    with pytest.raises(SpecError, match=r"'cat/caf\\udce9\.jpg' is named in no UTF-8; rename it"):
        from_folder(tmp_path, "faces", quiet)


def test_labels_that_the_model_does_not_know(tmp_path: Path) -> None:
    found = from_folder(fill(tmp_path), "faces", quiet)
    found.check_labels(["cat", "tench, Tinca tinca", "dog"])
    with pytest.raises(
        SpecError, match="has images of tench, Tinca tinca, which the model does not know; it knows Cat, cat, and"
    ):
        found.check_labels(["cat", "Cat"])


# S3


@pytest.fixture
def prefix(s3: Any) -> str:
    uri = f"s3://models/{uuid.uuid4().hex}/"
    for name, data in {**CONTENT, "cat/notes.txt": b"x"}.items():
        s3.client.put_object(Bucket="models", Key=uri.removeprefix("s3://models/") + name, Body=data)
    return uri


def test_a_prefix_is_read_as_a_folder_is(s3: Any, prefix: str, tmp_path: Path) -> None:
    found = labelled(prefix, tmp_path, lambda _: s3.client, quiet)
    assert found.truth == from_folder(fill(tmp_path / "same"), "faces", quiet).truth
    assert (found.uri, found.digest_of) == (prefix, "etags")
    (tmp_path / "scratch").mkdir()
    brought = found.bring(tmp_path / "scratch", quiet)
    assert {name: path.read_bytes() for name, path in brought} == CONTENT
    assert found.bring(tmp_path / "scratch", quiet) == brought
    assert {path.parent for _, path in brought} == {tmp_path / "scratch"}


def test_the_digest_of_a_prefix_follows_its_objects(s3: Any, prefix: str) -> None:
    key = prefix.removeprefix("s3://models/") + "cat/1.png"
    digest = from_store(s3.client, prefix, quiet).digest
    assert from_store(s3.client, prefix, quiet).digest == digest
    s3.client.put_object(Bucket="models", Key=key, Body=b"eno")
    assert from_store(s3.client, prefix, quiet).digest != digest


def test_an_object_that_changes_meanwhile_is_not_taken_for_the_one_listed(s3: Any, prefix: str, tmp_path: Path) -> None:
    found = from_store(s3.client, prefix, quiet)
    s3.client.put_object(Bucket="models", Key=prefix.removeprefix("s3://models/") + "cat/1.png", Body=b"other")
    with pytest.raises(StoreUnavailable, match=r"cat/1\.png: somebody wrote it at the same moment"):
        found.bring(tmp_path, quiet)


def test_a_prefix_without_images_and_a_bucket_that_is_not_there(s3: Any) -> None:
    with pytest.raises(SpecError, match="holds no images"):
        from_store(s3.client, f"s3://models/{uuid.uuid4().hex}/", quiet)
    with pytest.raises(StoreRefused, match="no such bucket"):
        from_store(s3.client, "s3://absent/faces/", quiet)
