"""The commands of `python -m model_release`, for when nobody wants to wait for a run. None of them needs Airflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from model_release.commands import calibrate, collect, doctor, emergency, guard, history, plan, surroundings
from model_release.errors import ReleaseError, SpecError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 1 with one line on stderr when not."""
    options = _parser().parse_args(argv)
    try:
        surroundings.settle_sandbox(options)
        print(options.run(options))
    except ReleaseError as error:
        # What was typed, or written into a file that is named, is mended by who reads this.
        by = "" if isinstance(error, SpecError) else f" -- can be fixed by {error.fixed_by}"
        print(f"model_release: {error}{by}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_release", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    emergency.register(commands)
    history.register(commands)
    doctor.register(commands)
    plan.register(commands)
    calibrate.register(commands)
    guard.register(commands)
    collect.register(commands)
    return parser
