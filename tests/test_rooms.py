"""The rooms of the package import one another in one direction, the one that the README draws."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "plugins" / "model_release"


def files() -> dict[str, set[str]]:
    """{file: files that it imports}, as modules; also inside of functions, and what only a type checker reads."""
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom):
                where = _where(node, module, path)
                below = {f"{where}.{alias.name}" for alias in node.names}
                of_files = below & modules.keys()
                found[module] |= of_files | ({where} & modules.keys() if below - of_files else set())
    return found


def _where(node: ast.ImportFrom, module: str, path: Path) -> str:
    """The module that is imported from, `from .state import …` in its full name."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def imports() -> dict[str, set[str]]:
    """{room: rooms that it imports from}."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in files().items():
        found[room_of(module)] |= {room_of(other) for other in others} - {room_of(module), ""}
    return found


def room_of(module: str) -> str:
    """`model_release.tasks.dag` is in `tasks`; `model_release.errors` is in none."""
    name = ".".join(module.split(".")[1:2])
    return name if name and (PACKAGE / name).is_dir() else ""


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


def test_no_file_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(files()).prepare()  # CycleError names those that do
