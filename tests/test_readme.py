"""The README keeps up with what it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from model_release.spec import Judge, Metric, ModelSpec, Resources, Rollout, Service, Source, Value

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [ModelSpec, Source, Service, Resources, Rollout, Judge, Metric, Value])
def test_every_key_of_a_model_file_is_in_the_reference(part: type) -> None:
    reference = README[README.index("| key | default | meaning |") : README.index("Then tell Airflow")]
    missing = [name for name in part.model_fields if not re.search(rf"\b{name}\b", reference)]  # type: ignore[attr-defined]
    assert missing == []


def test_the_readmes_model_file_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert ModelSpec.model_validate(yaml.safe_load(text)).rollout.steps == (10, 30)


def test_every_make_target_named_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    named = set(re.findall(r"`make ([a-z]+)`", README)) | set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE))
    assert {"release", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_every_file_linked_or_named_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (PROJECT / path).exists(), path
