"""pyproject.toml, the lock, the lists that follow from it and docs/dependencies.md say one thing of each package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import install
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

PROJECT = Path(__file__).resolve().parents[1]

PAGE = (PROJECT / "docs/dependencies.md").read_text(encoding="utf-8")
GROUPS: dict[str, list[Any]] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
LOCK: list[dict[str, Any]] = tomllib.loads((PROJECT / "uv.lock").read_text())["package"]
LISTED = [
    Requirement(line) for line in (PROJECT / "requirements.txt").read_text().splitlines() if not line.startswith("#")
]


def named(group: str, *, included: bool) -> set[str]:
    """The packages of a group; with those of the groups that it includes, or without."""
    found: set[str] = set()
    for one in GROUPS[group]:
        if isinstance(one, str):
            found.add(canonicalize_name(Requirement(one).name))
        elif included:
            found |= named(one["include-group"], included=True)
    return found


def test_the_page_has_a_reason_for_each_package_in_the_part_that_it_is_in() -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([a-z, ]+) \| (\S.+\S) \|$", PAGE, re.MULTILINE)
    rows = [row for row in rows if row[0] != "package"]
    told = {(name, part) for name, parts, _ in rows for part in parts.split(", ")}
    assert told == {(name, group) for group in GROUPS for name in named(group, included=False)}
    assert len({name for name, _, _ in rows}) == len(rows)


def test_requirements_txt_is_the_lock() -> None:
    locked = {(one["name"], one["version"]) for one in LOCK if "virtual" not in one["source"]}
    listed = {(canonicalize_name(one.name), str(one.specifier).removeprefix("==")) for one in LISTED}
    assert len(listed) > 250
    assert listed == locked, "make lock"


def test_the_lock_names_each_package_once_and_every_file_by_its_hash() -> None:
    """Once: the same versions whichever Python it is."""
    assert len({one["name"] for one in LOCK}) == len(LOCK)
    files = [file for one in LOCK for file in [*one.get("wheels", ()), *([one["sdist"]] if "sdist" in one else ())]]
    assert len(files) > 1000
    assert not [file["url"] for file in files if not re.fullmatch(r"sha256:[0-9a-f]{64}", file.get("hash", ""))]


def fits(wheel: dict[str, Any], python: str) -> bool:
    """Whether CPython `python` (cp312) takes this wheel on 64-bit Linux."""
    name = str(wheel["url"]).rsplit("/", 1)[-1].replace("%2B", "+")
    return any(
        (
            "py3" in tag.interpreter
            or tag.interpreter == python
            or (tag.abi == "abi3" and int(tag.interpreter[3:]) <= int(python[3:]))
        )
        and (tag.platform == "any" or ("linux" in tag.platform and "x86_64" in tag.platform))
        for tag in parse_wheel_filename(name)[3]
    )


def needed(python: str) -> list[dict[str, Any]]:
    """What the lock has for that Python."""
    minor = f"3.{python[3:]}"
    markers = {canonicalize_name(one.name): one.marker for one in LISTED}
    at = {"python_version": minor, "python_full_version": f"{minor}.9"}
    return [
        one for one in LOCK if one["name"] in markers and ((its := markers[one["name"]]) is None or its.evaluate(at))
    ]


@pytest.mark.parametrize("python", ["cp311", "cp312", "cp313"])
def test_each_python_has_a_wheel_of_each_package(python: str) -> None:
    """Without one it would be built where it is installed, by whatever tools are new that day."""
    built = {one["name"] for one in needed(python) if not any(fits(wheel, python) for wheel in one.get("wheels", ()))}
    assert built == set()


def test_the_size_that_set_up_says_is_the_locks() -> None:
    sizes = [
        max((wheel["size"] for wheel in one.get("wheels", ()) if fits(wheel, "cp311")), default=0)
        for one in needed("cp311")
    ]
    assert sum(sizes) / 1e9 == pytest.approx(install.SIZES["cuda"][0], rel=0.1)


@pytest.mark.parametrize("image", ["airflow", "sandbox", "serving"])
def test_an_images_list_is_its_part(image: str) -> None:
    lines = (PROJECT / f"include/images/{image}/hashed.txt").read_text().splitlines()
    listed = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    assert named(image, included=True) - listed == {"torch"}, "of PyTorch there are two builds, in cpu.txt and cuda.txt"
