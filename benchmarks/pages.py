"""Where measured tables stand: between markers on a page, whose prose around them is a person's."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).with_name("README.md")


def write(sections: dict[str, str], path: Path = README) -> None:
    """Puts each section between `<!-- name -->` and `<!-- /name -->`; the same section again changes nothing."""
    text = path.read_text(encoding="utf-8")
    for name, body in sections.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{path} has no place for {name}: {begin.strip()} and {end} are right")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{body}\n\n{end}{rest.split(end, 1)[1]}"
    path.write_text(text, encoding="utf-8")
