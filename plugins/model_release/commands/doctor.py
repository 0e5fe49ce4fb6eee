"""`python -m model_release doctor [--model M]`: whether a release could work, by Airflow's own connections.

It runs where Airflow runs, or anywhere with the connections in `AIRFLOW_CONN_…` variables; `--sandbox` takes those of
the sandbox. A line for each thing looked at: OK, warning or error, with the cure. Ends with 1 when there is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from model_release.commands import surroundings
from model_release.errors import NotReady
from model_release.model_file import load_all

if TYPE_CHECKING:
    from model_release.doctor import Finding

_STYLES = {"OK": "green", "warning": "yellow", "error": "bold red"}


def register(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="look whether a release could work, and say what would mend it")
    parser.add_argument("--model", help="one model instead of all in include/models/")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    surroundings.add_options(parser)
    parser.set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> str:
    """Prints findings as they come. Raises `NotReady` when a release would fail."""
    from model_release.doctor import Level, examine
    from model_release.tasks.preflight import world

    specs = {options.model: surroundings.spec(options)} if options.model else load_all(options.models)
    if options.sandbox is not None:
        surroundings.connect(options.sandbox)
    errors, found = 0, dict[str, list[dict[str, Any]]]()
    # Airflow logs to standard output; a program that asked for JSON finds that on standard error.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        for name, spec in specs.items():
            if not options.json:
                print(name)
            found[name] = []
            for one in examine(world(spec, surroundings.PROJECT)):
                errors += one.level is Level.ERROR
                found[name].append(one.as_dict())
                if not options.json:
                    _show(one)
    if options.json:
        print(json.dumps(found, indent=1))
    if errors:
        raise NotReady(f"{errors} of these would fail a release")
    return "" if options.json else "A release could work."


def _show(one: Finding) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(
        (f"  {one.level.value:<8}", _STYLES[one.level.value]), (f"{one.check:<12}", "dim"), one.sentence
    )
    if one.cure:
        line.append(f"\n  {'':<20}{one.cure}", style="italic")
    Console(highlight=False, soft_wrap=True).print(line)
