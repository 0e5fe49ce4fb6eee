"""Figures into a model file, and every other character as it was."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from model_release.errors import SpecError
from model_release.model_edit import KeyPath, exchange
from model_release.model_file import load

TEXT = """# The faces of our users; ask Grace before you touch a limit.
model: faces   # a comment
judge:
  metrics:
    - {name: errors, max_rate: 0.02, max_ratio: 1.5, floor: 0.005}  # agreed in March
    - name: slow
      above: 500ms
      # half a second was asked for
      max_rate: 5.0e-2   # five percent
  profile: knative-otel
source: {directory: candidates/faces}
store: s3://models/faces/
service: {name: classifier-vit, namespace: models}
"""
ERRORS: KeyPath = ("judge", "metrics", 0, "max_rate")
FLOOR: KeyPath = ("judge", "metrics", 0, "floor")
SLOW: KeyPath = ("judge", "metrics", 1, "max_rate")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "faces.yaml"
    path.write_text(TEXT)
    return path


def test_comments_order_and_everything_else_stay(file: Path) -> None:
    file.chmod(0o640)
    assert exchange(file, {ERRORS: 0.0075, FLOOR: 0.005, SLOW: 0.1}) == [
        f"{file}:5: judge.metrics.errors.max_rate 0.0075 instead of 0.02",
        f"{file}:9: judge.metrics.slow.max_rate 0.1 instead of 5.0e-2",
    ]
    assert file.read_text() == TEXT.replace("max_rate: 0.02", "max_rate: 0.0075").replace("5.0e-2", "0.1")
    assert [metric.max_rate for metric in load(file).judge.metrics] == [0.0075, 0.1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["faces.yaml"]


def test_written_twice_it_is_the_same_and_nothing_is_touched(file: Path) -> None:
    exchange(file, {ERRORS: 0.03, SLOW: 0.05})
    first, about = file.read_bytes(), file.stat()
    assert exchange(file, {ERRORS: 0.03, SLOW: 0.05}) == []
    assert (file.read_bytes(), file.stat().st_ino) == (first, about.st_ino)


def test_windows_lines_and_letters_beyond_ascii_stay(file: Path) -> None:
    text = TEXT.replace("Grace", "Zoë 🌷").replace("\n", "\r\n")
    file.write_bytes(text.encode())
    exchange(file, {SLOW: 0.2})
    assert file.read_bytes() == text.replace("5.0e-2", "0.2").encode()


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    exchange(link, {ERRORS: 0.03})
    assert link.is_symlink()
    assert "max_rate: 0.03" in file.read_text()


NOT_PLAIN = "judge.metrics.errors.max_rate is not a number that stands there for itself; write 0.5 there by hand"


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("max_rate: 0.02", "max_rate: &most 0.02", ERRORS, NOT_PLAIN),
        ("max_rate: 0.02", 'max_rate: "0.02"', ERRORS, NOT_PLAIN),
        (", max_ratio: 1.5, floor: 0.005", "", FLOOR, "judge.metrics.0.floor does not stand here for itself"),
    ],
    ids=["an anchor", "quoted", "not there"],
)
def test_what_is_not_a_plain_number_is_refused_with_its_line(
    file: Path, old: str, new: str, place: KeyPath, words: str
) -> None:
    file.write_text(text := TEXT.replace(old, new))
    with pytest.raises(SpecError) as refused:
        exchange(file, {place: 0.5})
    assert str(refused.value).startswith(f"{file}:5: {words}")
    assert file.read_text() == text


def test_what_is_used_in_two_places_is_refused_in_both(file: Path) -> None:
    text = TEXT.replace("max_rate: 0.02", "max_rate: &most 0.02").replace("max_rate: 5.0e-2", "max_rate: *most")
    file.write_text(text)
    for place in (ERRORS, SLOW):
        with pytest.raises(SpecError, match="is not a number that stands there for itself"):
            exchange(file, {place: 0.5})
    assert file.read_text() == text


def test_what_would_be_no_model_file_is_never_written(file: Path) -> None:
    with pytest.raises(SpecError, match=r"judge\.metrics\.0\.max_rate: input should be less than 1"):
        exchange(file, {ERRORS: 3})
    assert file.read_text() == TEXT
