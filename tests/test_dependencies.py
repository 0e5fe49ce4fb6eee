"""What pyproject.toml names, docs/dependencies.md gives a reason for; the lock and its copy for pip agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
SAID = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED = tomllib.loads((PROJECT / "uv.lock").read_text(encoding="utf-8"))["package"]


def test_every_dependency_has_a_reason_in_its_group() -> None:
    page = (PROJECT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    sections = {part.split(":", 1)[0]: part for part in page.split("\n## ")[1:]}
    told = {name: re.findall(r"^\| ([\w.-]+) \| \S", part, re.MULTILINE)[1:] for name, part in sections.items()}
    named = {group: [Requirement(one).name for one in lines] for group, lines in SAID["dependency-groups"].items()}
    assert told == named


def test_the_copy_for_pip_is_the_lock() -> None:
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    copied = {
        (canonicalize_name(one.name), str(one.specifier))
        for line in lines
        if line[0] != "#" and (one := Requirement(line))
    }
    locked = {(str(one["name"]), f"=={one.get('version')}") for one in LOCKED}
    assert copied <= locked
    cuda = {name for name, _ in locked if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert {name for name, _ in locked} - {name for name, _ in copied} == cuda | {"model-release"}


def test_every_file_of_the_lock_has_a_hash() -> None:
    files = [file for one in LOCKED for file in (*one.get("wheels", ()), *([one["sdist"]] if "sdist" in one else ()))]
    assert len(files) > 1000
    assert all(file["hash"].startswith("sha256:") for file in files)
