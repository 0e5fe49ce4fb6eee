"""The rooms of the package import one another in one direction, the one that the README draws."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "plugins" / "model_release"


def room_of(module: str) -> str | None:
    """`model_release.tasks.dag` is in `tasks`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "model_release" and len(parts) > 1 else None


def imports() -> dict[str, set[str]]:
    """{room: rooms that it imports from}, inside of functions too."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found[here] |= {room for module in modules if (room := room_of(module)) and (PACKAGE / room).is_dir()}
        found[here].discard(here)
    return found


def drawn() -> dict[str, int]:
    """{room: its place}, from the README's sentence; an import goes to a later place."""
    (sentence,) = re.findall(r"Imports run one way: (.+?)\. ", (PROJECT / "README.md").read_text().replace("\n", " "))
    return {room: place for place, names in enumerate(sentence.split(" → ")) for room in names.split(", ")}


def test_imports_run_the_way_that_the_readme_draws() -> None:
    place, seen = drawn(), imports()
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert rooms <= set(place), "a room is not in the drawing"
    back = {(one, other) for one in rooms for other in seen[one] if place[other] <= place[one]}
    assert back == set()


def test_the_judge_knows_of_nothing() -> None:
    assert imports()["judging"] == set()
