"""docs/models.md anew: `python tests/models` (make models). With names, only those cases, and no file is written.

What was tried with this very code is not tried again: a run that was interrupted goes on. With --kept, the page is
written of what was tried so far, and nothing is: what was not keeps what the page said of it, marked as of an earlier
state of the code. With --tiny or --full, only that half is tried, and no page written."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from cases import Case, kinds, tiny
from full import FULL
from run import LIMIT, Row, row

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
CACHE = ROOT / ".cache" / "models"
EARLIER = " (with an earlier state of the code)"


def tried(cases: Sequence[Case], own_process: bool, only_kept: bool = False) -> list[Row]:
    """A row for each case. What was tried already with this very code is kept in `.cache/models`, a file a case: a run
    that was interrupted goes on where it was. With `only_kept` nothing else is tried."""
    rows = []
    for number, case in enumerate(cases, 1):
        print(f"{number}/{len(cases)} {case}: ", end="", flush=True)
        kept = CACHE / f"{_digest(case)}.json"
        if kept.exists():
            rows.append(Row(case=case, **json.loads(kept.read_text(encoding="utf-8"))))
        elif only_kept:
            rows.append(Row(case, 0.0, ran=False))
        else:
            with tempfile.TemporaryDirectory(prefix="model-") as folder:
                # The bare check is a process of some seconds: once for each architecture, and each full-size one.
                whole = own_process or not case.name
                rows.append(row(case, Path(folder), whole=whole, own_process=own_process))
            told = {each.name: getattr(rows[-1], each.name) for each in fields(Row) if each.name != "case"}
            CACHE.mkdir(parents=True, exist_ok=True)
            (CACHE / "half").write_text(json.dumps(told), encoding="utf-8")
            (CACHE / "half").replace(kept)
        print(f"{_said(rows[-1])} {rows[-1].seconds:.1f} s", flush=True)
    return rows


def _digest(case: Case) -> str:
    """Of the case, and of all that a row depends on."""
    versions = " ".join(version(name) for name in ("transformers", "torch", "timm", "pillow", "numpy"))
    return hashlib.sha256(f"{case!r} {versions} {_code()}".encode()).hexdigest()


@cache
def _code() -> str:
    """A digest of the code that a row runs through: of run.py and every file of this project that it imports, those
    import, and so on, without comments and docstrings. The cases are left out: each is in its own digest."""
    found: dict[Path, str] = {}
    waiting = [Path(__file__).with_name("run.py")]
    while waiting:
        file = waiting.pop()
        if file in found or file.name in ("cases.py", "__main__.py"):
            continue
        tree = ast.parse(file.read_bytes())
        waiting += {path for name in _named(tree) for path in _files(name, file) if path.is_file()}
        for part in ast.walk(tree):
            if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(part) is not None:
                part.body = part.body[1:]
        found[file] = ast.dump(tree)
    return hashlib.sha256(
        "".join(f"{file.relative_to(ROOT)} {found[file]}" for file in sorted(found)).encode()
    ).hexdigest()


def _named(tree: ast.AST) -> Iterator[str]:
    """What may be names of modules: in imports, and as text, for what is imported late or run as a process."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            yield from (one.name for one in part.names)
        elif isinstance(part, ast.ImportFrom) and part.module:
            yield from (part.module, *(f"{part.module}.{one.name}" for one in part.names))
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            name = part.value.removesuffix(".py")
            if name.replace(".", "").isidentifier():
                yield name


def _files(name: str, by: Path) -> Iterator[Path]:
    """Where the module could be that the file `by` names: on the path, or beside it."""
    for folder in (ROOT / "plugins", ROOT / "include" / "handlers", by.parent):
        path = folder.joinpath(*name.split("."))
        yield from (path.with_suffix(".py"), path / "__init__.py")


def page(small: list[Row], full: list[Row], before: str) -> str:
    """The page; `before` is what it said until now."""
    if f"transformers {transformers.__version__} maps" not in before:
        before = ""
    tiny_lines, full_lines = _table(small, before), _table(full, before)
    said = [_result(line) for line in (*tiny_lines, *full_lines)]
    passing = {line.split(" | ")[0] for line in tiny_lines if _result(line).startswith("passes")}
    some, all_full = (sum(_result(line).startswith("passes") for line in half) for half in (tiny_lines, full_lines))
    wrong, earlier = (sum(word in one for one in said) for word in ("**wrong**", EARLIER))
    return "\n".join(
        [
            "# Which models can be released",
            "",
            "Made by `make models`; do not edit. Every architecture that transformers "
            f"{transformers.__version__} maps to image classification goes through export → archive → bare check → "
            f"handler (torch {torch.__version__.split('+')[0]}), and answers eleven pictures (photo, grey, palette, palette with a transparent colour, RGBA, "
            "CMYK, EXIF-turned, 1x1, very wide, 16-bit, tall) beside the transformers pipeline with the checkpoint's own "
            "processor (its PIL form; a timm checkpoint's is timm's eval transform, held to pixels that timm and "
            f"torchvision made). *Passes*: the same label first, and every probability within {LIMIT:g}. Weights "
            "are random, with the statistics of trained ones. The bare check, a process without transformers, is run once "
            "for each architecture, and for every full-size configuration. Where a model is refused, the sentence is the "
            "one that a release shows, before anything is uploaded.",
            "",
            f"**{len(passing)} of {len(kinds())} architectures pass, {some} of {len(small)} tiny variants, {all_full} of "
            f"{len(full)} full-size configurations; wrong answers: {wrong}; not run: {said.count('not run')}; run with an earlier state "
            f"of the code: {earlier}.**",
            "",
            "Pictures are read by one rule, the pipeline's: upright by EXIF, and as RGB. An alpha channel, and a palette "
            "with shades of transparency, are dropped, whatever a processor's `do_convert_rgb` says; one colour that the "
            "file calls transparent (GIF, PNG) is white with `do_convert_rgb: true`, and itself without. One picture is "
            "read better: 16-bit samples are scaled to 8 bits, as "
            "every viewer does, where the pipeline clips them to white. Labels are those of `id2label`, as text: classes "
            "without a name are called LABEL_3, and a name that several classes have is told apart by their numbers, "
            "`crane (134)` and `crane (517)`. Both are noted in the release's log.",
            "",
            "timm's checkpoints are read in both of their forms: as timm pushes them to the hub, and as transformers' "
            "timm_wrapper saves them. `pretrained_cfg` says what is done to a picture, as timm's eval transform does it; "
            "`label_names` what the classes are called, or, where there is none and as many classes as one of ImageNet's "
            "sets has, timm's own names for that set. A build takes the networks from timm and needs no torchvision; a "
            "server needs neither.",
            "",
            "## Tiny configurations of every architecture",
            "",
            *_HEAD,
            *tiny_lines,
            "",
            "## Full-size configurations of what is downloaded most",
            "",
            *_HEAD,
            *full_lines,
            "",
        ]
    )


_HEAD = (
    "| architecture | configuration | result | largest probability difference | seconds |",
    "|---|---|---|---:|---:|",
)


def _result(line: str) -> str:
    return line.split(" | ")[2]


def _table(rows: list[Row], before: str) -> list[str]:
    """A line for each row. One that was not run has the line that it had."""
    lines: list[str] = []
    for each in rows:
        start = f"| {each.case.kind} | {each.case.name} | "
        was = next((line for line in before.splitlines() if line.startswith(start)), None)
        if not each.ran and was is not None and _result(was) != "not run":
            cells = was.split(" | ")
            cells[2] = cells[2].removesuffix(EARLIER) + EARLIER
            lines.append(" | ".join(cells))
            continue
        difference = "" if each.difference is None else f"{each.difference:.0e}" if each.difference else "0"
        said = _said(each).replace("|", "\\|")
        seconds = f"{each.seconds:.1f}" if each.ran else ""
        lines.append(f"| {each.case.kind} | {each.case.name} | {said} | {difference} | {seconds} |")
    return lines


def _said(each: Row) -> str:
    if not each.ran:
        return "not run"
    if not each.made:
        return f"not made: {each.refused}"
    said = f"**wrong**: {each.wrong}" if each.wrong else f"refused: {each.refused}" if each.refused else "passes"
    return f"{said} (its tiny training failed: {each.untrained})" if each.untrained and not each.refused else said


def main() -> int:
    # More threads than idle cores wait for each other, and tiny ones are done before that.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="what the cases begin with; all unless said")
    half = parser.add_mutually_exclusive_group()
    for name in ("--kept", "--tiny", "--full"):
        half.add_argument(name, action="store_true")
    asked = parser.parse_args()

    def chosen(cases: Iterable[Case]) -> list[Case]:
        return [case for case in cases if not asked.names or any(str(case).startswith(name) for name in asked.names)]

    small = tried(chosen(tiny()), own_process=False, only_kept=asked.kept or asked.full)
    full = tried(chosen(FULL), own_process=True, only_kept=asked.kept or asked.tiny)
    if not (asked.names or asked.tiny or asked.full):
        PAGE.write_text(page(small, full, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if any(each.wrong for each in (*small, *full)) else 0


if __name__ == "__main__":
    sys.exit(main())
