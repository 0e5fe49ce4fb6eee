"""What a comment, a docstring or a page points at is there: a heading of docs/facts.md, or a file of this project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FACTS = PROJECT / "docs" / "facts.md"
FOLDERS = ("plugins", "include", "dags", "tests", "benchmarks", "docs", ".ci")
_KINDS = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".js", ".css", ".html"}
# Text that was recorded, and the page whose sources are other repositories.
_NOT_OURS = ("tests/data/", "docs/facts.md")
# Files that an example makes up, that a command writes, or that another project has.
_ELSEWHERE = {
    *("include/models/first.yaml", "include/models/second.yaml"),  # docs/kind.md
    *("include/models/faces.yaml", "include/models/broken.yaml", "tests/test_one.py", "walk.md"),
    *("docs/models.md", "models.md", "benchmarks/soak.json"),  # `make models`, `make soak`
    "git-lfs/docs/spec.md",
}

# A path that begins in this project, or the name of a page. Upstream files are cited as `repository: path`, in
# facts.md.
_PATH = re.compile(
    r"(?<![\w./{}<>*…-])((?:[\w.-]+/)+[\w.-]+\.(?:md|py|yaml|json|toml|gz|sh)|[\w-]+\.md)\b(?![\w*{}/-])"
)
_OURS = re.compile(r"^(?:plugins|include|dags|tests|benchmarks|docs|\.ci|data|shared|facts|lanes)/|\.md$")
_ISSUE = re.compile(r"\b[Ii]ssue \d+\b")


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def anchors() -> list[str]:
    return [anchor(heading) for heading in re.findall(r"^### (.+)$", FACTS.read_text(encoding="utf-8"), re.MULTILINE)]


def texts() -> Iterator[tuple[Path, str]]:
    top = [path for path in PROJECT.iterdir() if path.suffix in _KINDS or path.name in ("Makefile", "Dockerfile")]
    deep = [path for folder in FOLDERS for path in (PROJECT / folder).rglob("*") if path.suffix in _KINDS]
    for path in [*top, *deep]:
        name = path.relative_to(PROJECT).as_posix()
        if path.is_file() and path != Path(__file__) and not name.startswith(_NOT_OURS) and "node_modules" not in name:
            yield path, path.read_text(encoding="utf-8")


def cited() -> dict[str, list[str]]:
    """{anchor of docs/facts.md: where it is cited}; a page beside it may link to it as `facts.md#…`."""
    found: dict[str, list[str]] = {}
    for path, text in texts():
        if path != FACTS:
            for one in re.findall(r"facts\.md#([\w-]+)", text):
                found.setdefault(one, []).append(path.relative_to(PROJECT).as_posix())
    return found


def missing(path: Path, text: str) -> list[str]:
    """What the text points at and is not there: from the project's top, from beside it, or below a source folder."""
    roots = (PROJECT, path.parent, PROJECT / "plugins" / "model_release", PROJECT / "include", PROJECT / "docs")
    named = {one for one in _PATH.findall(text) if _OURS.search(one)} - _ELSEWHERE
    gone = [one for one in sorted(named) if not any((root / one).exists() for root in roots)]
    return gone + _ISSUE.findall(text)


def test_every_fact_that_is_cited_stands_in_the_page() -> None:
    wrong = {one: where for one, where in cited().items() if one not in anchors()}
    assert wrong == {}


def test_every_fact_of_the_page_is_relied_on() -> None:
    assert sorted(set(anchors()) - set(cited())) == []
    assert len(anchors()) == len(set(anchors()))


def test_every_fact_names_where_it_was_read_or_seen() -> None:
    parts = re.split(r"^### ", FACTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    source = re.compile(
        r"^[\w.-]+/[\w.-]+(?: [0-9a-f]{8})?: `|[Ss]een |[Rr]ecording|[Mm]easured|same sources", re.MULTILINE
    )
    assert [part.splitlines()[0] for part in parts if not source.search(part)] == []


def test_nothing_points_at_a_file_that_is_not_here() -> None:
    wrong = {str(path.relative_to(PROJECT)): gone for path, text in texts() if (gone := missing(path, text))}
    assert wrong == {}


@pytest.mark.parametrize(
    "said", ["facts/kserve.md 2.5", "see judge.md", "shared/design.md", "issue 12", "docs/gone.md"]
)
def test_a_citation_of_what_is_not_here_is_found(said: str) -> None:
    assert missing(PROJECT / "README.md", f"Why: {said}, and docs/eks.md")
