"""Reading model files: YAML into a `ModelSpec`, or one line for each trouble.

Whatever cannot be accepted is refused with the file, the line in it, the field, what is wrong and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from model_release.errors import SpecError
from model_release.spec import ModelSpec

# libyaml's loader where PyYAML was built with it: a DAG file reads all model files each time it is parsed.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """SafeLoader that refuses a key written twice; YAML's own rule, which PyYAML does not keep."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # what looks like a date or a number, and is none
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):  # as of a template's {{ … }} that nobody filled in
            raise yaml.MarkedYAMLError(
                problem="a key is a word, not a list or a mapping", problem_mark=key_node.start_mark
            )
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key!r} stands here twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _line(node: yaml.Node | None, path: Sequence[int | str]) -> int:
    """The line of the deepest part of `path` that the file has, counted from 1."""
    line = node.start_mark.line + 1 if node else 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _sentence(error: Any, known: dict[str, list[str]]) -> str:
    path = [str(part) for part in error["loc"]]
    kind, message = error["type"], error["msg"]
    if kind == "extra_forbidden":
        names = known.get(".".join(p for p in path[:-1] if not p.isdigit()), [])
        close = difflib.get_close_matches(path[-1], names, n=1)
        message = f"unknown key; {close[0]!r} is near" if close else f"unknown key; {', '.join(names)} are known"
    elif kind == "missing":
        message = "is missing"
    elif kind == "value_error":
        message = str(error["ctx"]["error"])
    elif kind == "string_pattern_mismatch":
        message = f"{error['input']!r} does not have the form {error['ctx']['pattern']}"
    else:
        message = f"{message[0].lower()}{message[1:]}, not {error['input']!r}"
    return f"{'.'.join(path)}: {message}" if path else str(message)


def _known_keys(part: type[BaseModel] = ModelSpec, path: str = "") -> dict[str, list[str]]:
    """The keys of the file by the dotted path of the mapping they stand in."""
    known = {path: [field.alias or name for name, field in part.model_fields.items()]}
    for name, field in part.model_fields.items():
        for kind in _models_in(field.annotation):
            known |= _known_keys(kind, f"{path}.{field.alias or name}".lstrip("."))
    return known


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def load(path: Path) -> ModelSpec:
    """Read one model file.

    Raises:
        SpecError: with every trouble of the file, one after the other, each with file, line, field and cure.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            content = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise SpecError(f"{path}:{line}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}:1: a model file is a mapping that begins with `model: <name>`")
    try:
        return ModelSpec.model_validate(content)
    except ValidationError as error:
        known = _known_keys()
        found = error.errors()
        # A list whose items were refused also counts as empty; that line would only puzzle.
        refused_items = {
            trouble["loc"][:depth]
            for trouble in found
            for depth, part in enumerate(trouble["loc"])
            if isinstance(part, int)
        }
        troubles = [
            f"{path}:{_line(root, trouble['loc'])}: {_sentence(trouble, known)}"
            for trouble in found
            if not (trouble["type"] == "too_short" and trouble["loc"] in refused_items)
        ]
        raise SpecError("; ".join(troubles)) from error


def files_in(folder: Path) -> list[Path]:
    """The folder's model files, `*.yaml`, sorted; what is hidden is an editor's or a Mac's."""
    return sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))


def file_of(folder: Path, model: str) -> Path:
    """The file that is that model's.

    Raises:
        SpecError: there is none.
    """
    for path in files_in(folder):
        try:
            if load(path).model == model:
                return path
        except SpecError:
            continue
    raise SpecError(f"{folder}: no file is that of model {model!r}")


def read_all(folder: Path) -> tuple[dict[str, ModelSpec], list[str]]:
    """Every model file of the folder by model name, in the order of the files' names; and what is wrong with those
    that cannot be accepted, or that name another's model. A file that is broken stops no other model's release."""
    specs: dict[str, ModelSpec] = {}
    files: dict[str, Path] = {}
    refused: list[str] = []
    for path in files_in(folder):
        try:
            spec = load(path)
        except SpecError as error:
            refused.append(str(error))
            continue
        if spec.model in specs:
            refused.append(f"{path}: model: {spec.model!r} is already the model of {files[spec.model]}")
            continue
        specs[spec.model], files[spec.model] = spec, path
    return specs, refused


def load_all(folder: Path) -> dict[str, ModelSpec]:
    """As `read_all`, for what must know of every model.

    Raises:
        SpecError: for all files that cannot be accepted.
    """
    specs, refused = read_all(folder)
    if refused:
        raise SpecError("\n".join(refused))
    return specs
