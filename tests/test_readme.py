"""The README keeps up with what it describes, and each page's commands are ones."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from model_release.commands import _parser
from model_release.spec import ModelSpec

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
REFERENCE = (PROJECT / "docs" / "model-file.md").read_text(encoding="utf-8")
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), PROJECT / "benchmarks" / "README.md")


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


def blocks(page: Path) -> list[str]:
    """The page's blocks of code, but those of YAML, JSON and Python: between fences, or indented."""
    found, fence, part = [], None, list[str]()
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("```"):
            if fence is None:
                fence, part = line[3:], []
            else:
                found += ["\n".join(part)] if fence in ("", "bash", "console") else []
                fence, part = None, []
        elif fence is not None or line.startswith("    "):
            part.append(line.removeprefix("    ") if fence is None else line)
        elif part:
            found, part = [*found, "\n".join(part)], []
    return [re.sub(r"\\\n\s*", " ", block) for block in found]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(page, words behind the program) of every command that a page shows, in a block or in a line; no comments."""
    found = []
    for page in PAGES:
        lines = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        lines += [line.removeprefix("$ ") for block in blocks(page) for line in block.splitlines()]
        words = [line.removeprefix(program) for line in lines if re.match(rf"{re.escape(program)}( |$)", line)]
        found += [(page.name, shlex.split(one.replace("…", ""), comments=True)) for one in words]
    return found


def test_every_make_target_named_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text() + (PROJECT / ".ci/install.py").read_text()
    named = {word for _, words in commands("make") for word in words}
    assert {"release", "test", "MODEL=faces"} <= named
    targets = sorted(word for word in named if re.fullmatch("[a-z]+", word))
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    settings = {word.partition("=")[0] for word in named if "=" in word}
    assert settings >= {"MODEL", "RUNTIME"}
    assert [name for name in sorted(settings) if not re.search(rf"\$\({name}\)|\b{name}\b.*environ", makefile)] == []


def test_every_command_shown_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """By the program's own reading of its words. What stands for a name (`MODEL`, `SERVICE`) is one."""
    refused = []
    shown = commands("python -m model_release")
    for page, words in shown:
        if words:
            try:
                _parser().parse_args([re.sub(r"^<.+>$", "x", word) for word in words])
            except SystemExit:
                refused.append(f"{page}: {words}: {capsys.readouterr().err.strip().splitlines()[-1]}")
    # A command's bare name, as sentences have it, is no whole one.
    assert [line for line in refused if "the following arguments are required" not in line] == []
    known = "roll-back promote freeze thaw guard doctor plan calibrate versions prune collect"
    assert {words[0] for _, words in shown if words} == set(known.split())


def test_every_benchmark_shown_takes_what_it_is_given() -> None:
    shown = [(page, words) for page, words in commands("python") if words and words[0].startswith("benchmarks/")]
    assert len(shown) > 10
    for page, (script, *words) in shown:
        tree = ast.parse((PROJECT / script).read_text(encoding="utf-8"))
        said = {one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        assert {word.strip("[]") for word in words if word.strip("[").startswith("--")} <= said, f"{page}: {script}"


def test_every_module_shown_is_there() -> None:
    shown = {words[1] for _, words in commands("python") if words and words[0] == "-m"}
    assert {"model_release", "model_release.judging", "model_release.metrics.dashboards"} <= shown
    assert [name for name in sorted(shown) if importlib.util.find_spec(name) is None] == []


# Where a page of docs/ shows a block of commands: the test that runs it, or what the page says of what it needs.
RUN = {
    "eks.md": "None of it was run on a real cluster",
    "kind.md": "None of it\nwas run by those who wrote it",
    "metrics.md": "on a cluster with kube-prometheus-stack",
    "mlflow.md": "tests/mlflow_server.py",
    "requests.md": "tests/build/test_served.py",
    "runbook.md": "need `source .venv/bin/activate` and a kubeconfig",
    "stores.md": "tests/tasks/test_connections.py",
    "walkthrough.md": "tests/e2e/test_walkthrough.py",
}
PROGRAMS = "airflow aws curl docker eksctl export helm kind kubectl make pip python sed source statsd_exporter uvx"


def test_every_page_with_commands_is_run_or_says_what_it_needs() -> None:
    shown = {
        page.name
        for page in (PROJECT / "docs").glob("*.md")
        for block in blocks(page)
        if re.search(rf"^(\$ |[A-Z_]+=\S+ )?({'|'.join(PROGRAMS.split())}) ", block, re.MULTILINE)
    }
    assert shown == set(RUN)
    for name, held in RUN.items():
        if held.endswith(".py"):
            assert name in (PROJECT / held).read_text(encoding="utf-8"), f"{held} does not name {name}"
        else:
            assert held in (PROJECT / "docs" / name).read_text(encoding="utf-8"), f"{name} does not say what it needs"


def test_every_file_linked_exists() -> None:
    linked = [
        (page, path)
        for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md"))
        for path in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert {page.name for page, _ in linked} > {"README.md"}
    assert [f"{page.name}: {path}" for page, path in linked if not (page.parent / path).exists()] == []
