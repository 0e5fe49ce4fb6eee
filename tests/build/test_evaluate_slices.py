"""What labelled images have in common beside their labels: where it is told, what is refused, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import beta

from model_release.build import evaluate
from model_release.build.evaluation.images import from_folder, from_store
from model_release.build.evaluation.measures import Answer
from model_release.build.evaluation.slices import LARGEST_FILE, MOST, by_slice, slices
from model_release.errors import SpecError

IMAGES = ["cat/1.png", "cat/phone/2.png", "dog/phone/deep/3.png"]
TABLE = "\ufeffimage,country,device\ncat/1.png,fr,\n\ndog/phone/deep/3.png, de ,x\n"


def test_folders_within_a_labels_folder_are_slices_and_so_are_the_columns_of_the_table() -> None:
    assert slices("faces/", IMAGES, TABLE.encode()) == {
        "folder": {"cat/1.png": "none", "cat/phone/2.png": "phone", "dog/phone/deep/3.png": "phone"},
        "country": {"cat/1.png": "fr", "cat/phone/2.png": "none", "dog/phone/deep/3.png": "de"},
        "device": {"cat/1.png": "none", "cat/phone/2.png": "none", "dog/phone/deep/3.png": "x"},
    }
    assert slices("faces/", ["cat/1.png", "dog/2.png"], None) == {}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"", "slices.csv:1 says ''; right is image, which is a path"),
        (b"image\n", "slices.csv:1 says 'image'"),
        (b"name,country\n", "slices.csv:1 says 'name,country'"),
        (b"image,a,b,c,d,e,f\n", "one to 5 columns"),
        (b"image,country,country\n", "slices.csv:1 has a column twice"),
        (b"image,folder\n", "slices.csv:1 has a column twice, or one called folder"),
        (b"image,country\ncat/1.png,fr,x\n", "slices.csv:2 has 3 fields, and the first line 2"),
        (
            b"image,country\ncat/9.png,fr\n",
            "slices.csv:2: image 'cat/9.png' is not there; right is a path such as cat/1",
        ),
        (b"image,country\ncat/1.png,fr\ncat/1.png,de\n", "slices.csv:3: image 'cat/1.png' has a line before"),
        (b"image,country\ncat/1.png,f\x07r\n", "slices.csv:2: country 'f\\x07r' is no plain name"),
        (b"image,country\ncat/1.png," + 61 * b"x", "of up to 60 letters"),
        (b"image,country\ncat/1.png,\xff", "slices.csv is not UTF-8: byte 24"),
        (b'image,country\n"cat/1.png,fr\n', "cannot be read as CSV"),
    ],
)
def test_a_table_that_says_something_else_is_refused_in_one_line(table: bytes, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        slices("faces", IMAGES, table)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_table_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    with (tmp_path / "slices.csv").open("wb") as table:
        table.truncate(LARGEST_FILE + 1)
    with pytest.raises(SpecError, match=r"faces/slices.csv has 32000001 bytes; 32000000 at most are read"):
        from_folder(tmp_path, "faces", print)


def test_the_table_is_no_image_and_changes_no_answer(tmp_path: Path, s3: Any) -> None:
    lines: list[str] = []
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        s3.client.put_object(Bucket="models", Key=f"sliced/{name}", Body=b"x")
    bare = from_folder(tmp_path, "faces", lines.append)
    (tmp_path / "slices.csv").write_text(TABLE)
    s3.client.put_object(Bucket="models", Key="sliced/slices.csv", Body=TABLE.encode())
    here = from_folder(tmp_path, "faces", lines.append)
    there = from_store(s3.client, "s3://models/sliced/", lines.append)
    assert (here.digest, here.truth) == (bare.digest, bare.truth)
    assert here.slices == there.slices == slices("faces", IMAGES, TABLE.encode())
    assert lines == []


def test_each_slice_is_told_with_what_surely_got_worse() -> None:
    names = [f"cat/{n}.png" for n in range(100)]
    truth = dict.fromkeys(names, "cat")
    told = {"country": {name: "fr" if place < 40 else "de" for place, name in enumerate(names)}}
    good, bad = Answer("cat", 0.9), Answer("dog", 0.9)
    stable = dict.fromkeys(names, good) | {names[0]: bad}
    candidate = dict.fromkeys(names, good) | dict.fromkeys(names[1:9], bad) | {names[99]: Answer(None)}
    french, german = by_slice(truth, told, stable, candidate)
    assert (french["slice"], french["images"], french["before"], french["regressions"]) == ("fr", 40, 39 / 40, 8)
    assert french["accuracy"] == 32 / 40
    # Clopper and Pearson, by the quantiles of the beta distribution.
    expected = beta.ppf(0.05, 8, 33), beta.ppf(0.95, 9, 32)
    assert (french["lower"], french["upper"]) == pytest.approx(expected, abs=1e-9)
    assert (german["slice"], german["regressions"]) == ("de", 1)
    alone = by_slice(truth, told, None, candidate)
    assert [set(row) for row in alone] == [{"by", "slice", "images", "accuracy"}] * 2
    assert [row["slice"] for row in alone] == ["fr", "de"], "the worse one first"
    said = evaluate._worse(french)
    assert said == "right only before in country=fr: 8 of 40 images (20 %; of all such images 10.36 % to 33.2 %)"


def test_after_so_many_slices_the_smallest_are_other() -> None:
    names = [f"cat/{n}.png" for n in range(2 * MOST + 30)]
    # Fifty slices of two images, and thirty of one.
    told = {"user": {name: f"u{place % (MOST + 30) if place >= MOST else place}" for place, name in enumerate(names)}}
    answers = dict.fromkeys(names, Answer("cat", 0.9))
    rows = by_slice(dict.fromkeys(names, "cat"), told, answers, answers)
    assert len(rows) == MOST + 1
    assert sum(row["images"] for row in rows) == len(names)
    assert [row["images"] for row in rows if row["slice"] == "other"] == [
        len(names) - sum(row["images"] for row in rows if row["slice"] != "other")
    ]
