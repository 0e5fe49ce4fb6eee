"""Serving runtimes: one module each, and nobody else knows of one."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest

from model_release.build import runtimes
from model_release.errors import ArchiveError
from model_release.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "plugins" / "model_release"


def test_a_model_file_may_name_each_runtime() -> None:
    field = ModelSpec.model_fields["runtime"]
    assert get_args(field.annotation) == runtimes.NAMES
    assert field.default == runtimes.DEFAULT


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_what_a_runtime_says_of_itself(name: str) -> None:
    runtime = runtimes.get(name)
    said = {attribute for attribute in runtimes.Runtime.__annotations__ if not hasattr(runtime, attribute)}
    assert said == set(), "missing"
    assert name == runtime.NAME
    handler = runtimes.handler(ROOT, name)
    assert runtimes.of_handler(handler) is runtime
    assert (ROOT / runtime.MANIFEST).is_file()
    first, *beside = [path.name for path in runtimes.handler_files(handler)]
    assert first == runtime.ENTRY
    assert beside == [f"image_{part}.py" for part in ("headers", "input", "model", "pixels", "requests", "slices")]
    assert runtimes.of_archive(Path(runtimes.archive_file(runtime, "digits"))) is runtime


def test_no_two_runtimes_can_be_mistaken_for_each_other() -> None:
    for one, other in combinations(map(runtimes.get, runtimes.NAMES), 2):
        for attribute in ("ENTRY", "SUFFIX", "CONFIG", "MANIFEST"):
            assert getattr(one, attribute) != getattr(other, attribute)


def test_what_is_no_runtimes_is_refused_by_name() -> None:
    with pytest.raises(ArchiveError, match="'triton' is no serving runtime; known are torchserve"):
        runtimes.get("triton")
    with pytest.raises(ArchiveError, match=r"x\.tar is no archive of a serving runtime; known are \.mar, \.zip"):
        runtimes.of_archive(Path("x.tar"))
    with pytest.raises(
        ArchiveError, match=r"is no handler; expected a file named image_classifier\.py or kserve_model\.py"
    ):
        runtimes.of_handler(ROOT / "include" / "handlers" / "image_input.py")


_SAID = {"build/runtimes/__init__.py", "spec/__init__.py"}  # what a model file may say, and what it says unless told


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (r"torchserve|\bts_\w+|\.mar\b|model-archiver", {"build/runtimes/torchserve.py", *_SAID}),
        (r"kserve_model|serving\.json|serving-kserve", {"build/runtimes/kserve.py"}),
    ],
)
def test_nobody_but_its_module_knows_of_a_runtime(words: str, known: set[str]) -> None:
    of_it = re.compile(words, re.IGNORECASE)
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if of_it.search(path.read_text(encoding="utf-8"))
    }
    assert found == known
