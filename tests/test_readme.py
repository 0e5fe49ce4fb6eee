"""The README keeps up with what it describes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from model_release.spec import ModelSpec

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
REFERENCE = (PROJECT / "docs" / "model-file.md").read_text(encoding="utf-8")


def parts(part: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The part and every part in it."""

    def models_in(annotation: object) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from parts(annotation)
        for argument in get_args(annotation):
            yield from models_in(argument)

    yield part
    for field in part.model_fields.values():
        yield from models_in(field.annotation)


@pytest.mark.parametrize("part", dict.fromkeys(parts(ModelSpec)))
def test_every_key_of_a_model_file_is_in_the_reference(part: type[BaseModel]) -> None:
    keys = [field.alias or name for name, field in part.model_fields.items()]
    # As code, or as a key of an example: `in`, `name` and `data` are words of any sentence.
    assert [key for key in keys if not re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`|\b{key}:", REFERENCE)] == []


def test_every_model_file_that_is_shown_is_one() -> None:
    shown = [text for page in (README, REFERENCE) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    whole = [yaml.safe_load(text) for text in shown]
    assert [ModelSpec.model_validate(one).model for one in whole if "model" in one] == ["faces", "faces"]


def test_every_make_target_named_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    named = set(re.findall(r"`make ([a-z]+)`", README)) | set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE))
    assert {"release", "test"} <= named
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_file_linked_exists() -> None:
    linked = [
        (page, path)
        for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md"))
        for path in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert {page.name for page, _ in linked} > {"README.md"}
    assert [f"{page.name}: {path}" for page, path in linked if not (page.parent / path).exists()] == []
