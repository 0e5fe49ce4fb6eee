"""`python -m model_release plan MODEL`: how long a release would need, and what it would find, before anything moves.

It reads stable's past from Prometheus by Airflow's own connections, as `doctor` does; `--sandbox` takes the sandbox's.
Where there is no past, it says what it assumes instead. Ends with 1 when the preflight would refuse the release.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from model_release.commands import surroundings
from model_release.errors import NotReady, ReleaseError

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.metrics.prometheus import Prometheus
    from model_release.release.plan import Foreseen
    from model_release.spec import ModelSpec

T = TypeVar("T")


def register(commands: Any) -> None:
    """Adds `plan` to the commands of `python -m model_release`."""
    text = "says how long a release would need, what it would find, and what would make it faster"
    added = commands.add_parser("plan", help=text, description=(__doc__ or "").split("\n\n", 1)[1])
    added.add_argument("model", metavar="MODEL", help="a model's name")
    added.add_argument("--json", action="store_true", help="as JSON")
    added.add_argument(
        "--requests-per-second",
        type=_rate,
        metavar="N",
        help="of the whole service, instead of those that Prometheus counted",
    )
    surroundings.add_options(added)
    added.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> str:
    from model_release.release.plan import NOTHING, foresee

    spec = surroundings.spec(options)
    # Airflow logs to standard output; a program that asked for JSON finds that on standard error.
    with contextlib.redirect_stdout(sys.stderr):
        prometheus, live, troubles = around(options, spec)
        found = foresee(
            spec,
            prometheus,
            live.stable_revision if live else None,
            live.started if live else None,
            per_second=options.requests_per_second,
            unknown="what is stable is not known" if troubles else NOTHING,
        )
    if options.json:
        said = json.dumps({"model": spec.model, "service": spec.service.key, **found.to_dict()}, indent=1)
    else:
        said = "\n".join([f"{spec.model} on {spec.service.key}", *(f"  {line}" for line in _lines(found, troubles))])
    if found.refusal:
        print(said)
        raise NotReady(found.refusal)
    return said


def _lines(found: Foreseen, troubles: list[str]) -> list[str]:
    """The plan's, and what kept it from being of this service's own past."""
    lines = [*troubles, *found.sentences]
    if found.trouble and found.goes:
        lines.append(f"{found.trouble}; {found.goes}.")
    return lines


def around(
    options: argparse.Namespace, spec: ModelSpec
) -> tuple[Prometheus | None, InferenceService | None, list[str]]:
    """Prometheus and the service as they are now; None for what cannot be reached, with why."""
    from model_release.cluster.services import InferenceServices
    from model_release.tasks.preflight import world

    if options.sandbox is not None:
        surroundings.connect(options.sandbox)
    its, troubles = world(spec, surroundings.PROJECT), list[str]()
    prometheus = _reached("Prometheus", its.prometheus, troubles)
    live = _reached(
        "the cluster", lambda: InferenceServices(its.cluster()).get(spec.service.namespace, spec.service.name), troubles
    )
    return prometheus, live, troubles


def _reached(what: str, make: Callable[[], T], troubles: list[str]) -> T | None:
    try:
        return make()
    except ReleaseError as trouble:
        troubles.append(f"{what} was not asked: {trouble}")
    except (
        Exception
    ) as trouble:  # a connection is missing or says what cannot be, in as many ways as there are providers
        troubles.append(f"{what} was not asked: {' '.join(str(trouble).split())}")
    return None


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: write requests a second, 0.5 or 12 for example")
    return number
