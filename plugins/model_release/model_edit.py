"""Figures into a model file: numbers that stand in it are exchanged, and every other character stays."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model_release.errors import SpecError
from model_release.model_file import load

KeyPath = tuple[str | int, ...]

_NUMBER = re.compile(r"[-+.0-9eE_]+")


def exchange(path: Path, figures: Mapping[KeyPath, float]) -> list[str]:
    """Writes each figure to its place (`("judge", "metrics", 0, "max_rate")`); returns a line for each that changed.

    The file is exchanged as a whole, once what would stand in it was read as a model file: a reader never sees half of
    it. Written again, nothing changes.

    Raises:
        SpecError: a place does not hold a plain number of its own, with file and line; or the file cannot be written.
    """
    before = load(path)
    with path.open(encoding="utf-8", newline="") as file:
        text = file.read()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    uses = Counter(id(node) for node in _scalars(root))
    spans = []
    for place, figure in figures.items():
        node = _node(path, root, place)
        there, named = text[node.start_mark.index : node.end_mark.index], _named(place, before)
        if uses[id(node)] > 1 or not _NUMBER.fullmatch(there):
            raise SpecError(
                f"{path}:{node.start_mark.line + 1}: {named} is not a number that stands there for itself; write "
                f"{figure:g} there by hand, or a plain number, and calibrate again"
            )
        if float(there) != figure:
            spans.append((node.start_mark, node.end_mark, figure, f"{named} {figure:g} instead of {there}"))
    if not spans:
        return []
    for start, end, figure, _ in sorted(spans, key=lambda span: -span[0].index):
        text = f"{text[: start.index]}{figure:g}{text[end.index :]}"
    _replace(path.resolve(), text, before, figures)
    return [f"{path}:{start.line + 1}: {said}" for start, _, _, said in spans]


def _scalars(root: Any) -> list[yaml.ScalarNode]:
    """Every scalar, as often as it is used."""
    if isinstance(root, yaml.MappingNode):
        return [found for pair in root.value for part in pair for found in _scalars(part)]
    if isinstance(root, yaml.SequenceNode):
        return [found for part in root.value for found in _scalars(part)]
    return [root] if isinstance(root, yaml.ScalarNode) else []


def _node(path: Path, root: Any, place: Sequence[str | int]) -> yaml.ScalarNode:
    node = root
    for part in place:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            node = None
        if node is None:
            named = ".".join(map(str, place))
            raise SpecError(f"{path}:{line}: {named} does not stand here for itself; write it out, and calibrate again")
    if not isinstance(node, yaml.ScalarNode):
        raise SpecError(f"{path}:{node.start_mark.line + 1}: {'.'.join(map(str, place))} is no number")
    return node


def _named(place: KeyPath, spec: Any) -> str:
    """`judge.metrics.errors.max_rate`: a metric by its name."""
    words = []
    for part in place:
        spec = spec[part] if isinstance(part, int) else getattr(spec, part)
        words.append(spec.name if isinstance(part, int) else part)
    return ".".join(words)


def _replace(path: Path, text: str, before: Any, figures: Mapping[KeyPath, float]) -> None:
    wanted = before.model_dump()
    for place, figure in figures.items():
        part = wanted
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = figure
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
        passing = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            if load(passing).model_dump() != wanted:
                raise SpecError(f"{path}: what would be written does not say what was meant; write it by hand")
            shutil.copymode(path, passing)
            passing.replace(path)
        finally:
            passing.unlink(missing_ok=True)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error}") from error
