"""`python -m model_release calibrate MODEL`: limits from the service's own past, each with its consequences.

It reads what `plan` reads, and proposes for each metric the smallest limit that good canaries can be shown to keep by
the deadline. `--write` puts the figures into the model file, each in the place of the number that stands there:
comments and order stay, and written again the file stays as it is. Airflow reads the file anew by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from model_release.commands import surroundings
from model_release.commands.plan import around
from model_release.errors import NotReady


def register(commands: Any) -> None:
    """Adds `calibrate` to the commands of `python -m model_release`."""
    text = "proposes limits from the service's own past, and writes them into the model file when asked"
    added = commands.add_parser("calibrate", help=text, description=(__doc__ or "").split("\n\n", 1)[1])
    added.add_argument("model", metavar="MODEL", help="a model's name")
    added.add_argument("--write", action="store_true", help="into the model file")
    added.add_argument("--json", action="store_true", help="as JSON")
    surroundings.add_options(added)
    added.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> str:
    from model_release.model_edit import exchange
    from model_release.model_file import file_of
    from model_release.release.plan import calibrated

    spec = surroundings.spec(options)
    # Airflow logs to standard output; a program that asked for JSON finds that on standard error.
    with contextlib.redirect_stdout(sys.stderr):
        prometheus, live, troubles = around(options, spec)
        stable = live.stable_revision if live else None
        if prometheus is None or live is None or stable is None:
            why = "; ".join(troubles) or f"nothing is stable yet on {spec.service.key}"
            raise NotReady(f"there is no past to calibrate by: {why}")
        proposals, past = calibrated(spec, prometheus, stable, live.started)
    written: list[str] = []
    if options.write:
        names = [metric.name for metric in spec.judge.metrics]
        written = exchange(
            file_of(options.models, spec.model),
            {
                ("judge", "metrics", names.index(one.metric), name): value
                for one in proposals
                for name, value in one.changes
            },
        )
    if options.json:
        told = {"model": spec.model, "past": past, "proposals": [one.to_dict() for one in proposals]}
        return json.dumps(told | {"written": written}, indent=1)
    lines = [f"{spec.model} on {spec.service.key}", past, *(f"{one.sentence}." for one in proposals)]
    if options.write:
        lines += written or ["The model file says that already."]
    elif any(one.changes for one in proposals):
        lines.append("Nothing was written: --write does it.")
    return "\n  ".join(lines)
