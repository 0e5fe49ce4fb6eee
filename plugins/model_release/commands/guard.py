"""`python -m model_release guard`: closes open canaries that nobody looks at any more (`release.guard`).

It runs for ever beside Airflow and needs the Kubernetes API and nothing else; include/manifests/guard.yaml is its
Deployment. `--once` is for whoever has a scheduler of their own: it looks for as long as it takes to see of each
release whether somebody looks at it (a minute at most), closes those at which nobody does, and ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_release.commands import surroundings
from model_release.errors import NotSettled

# Seconds that `--once` may take: a lease's duration, and the time until the gateway has what was written.
ONCE = 180.0


def register(commands: Any) -> None:
    """Adds `guard` to the commands of `python -m model_release`."""
    says = "closes open canaries that nobody looks at any more"
    added = commands.add_parser("guard", help=says, description=(__doc__ or "").split("\n\n", 1)[1])
    added.add_argument(
        "--namespace", action="append", default=[], help="where to look, where the whole cluster may not be listed"
    )
    added.add_argument("--interval", type=float, help="seconds between two looks (2)")
    added.add_argument(
        "--once", action="store_true", help="end as soon as each release was seen to be looked at, or was closed"
    )
    added.add_argument("--touch", metavar="FILE", help="touched after each look: what a liveness probe goes by")
    added.add_argument("--json", action="store_true", help="a line of JSON for each thing that there is to tell")
    surroundings.add_options(added, cluster=True)
    added.set_defaults(run=_guard)


def _guard(options: argparse.Namespace) -> str:
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.release.guard import INTERVAL, Guard

    client = surroundings.cluster(options.kubeconfig)
    client.user_agent = "model-release-guard/1"
    guard = Guard(Leases(client), InferenceServices(client, ask_pods=False), options.namespace)
    ended, end = threading.Event(), time.monotonic() + ONCE
    for line in _check_rights(client, options.namespace):
        _tell(line, as_json=options.json)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while True:
        for line in guard.look():
            _tell(line, as_json=options.json)
        if options.touch:
            Path(options.touch).touch()
        if options.once and not guard.undecided:
            return "" if options.json else "Each release is looked at, or its canary is closed."
        if options.once and time.monotonic() > end:
            raise NotSettled(f"not decided within {ONCE:.0f} s: {', '.join(guard.undecided)}")
        if ended.wait(options.interval or INTERVAL):
            return "" if options.json else "The guard has ended."


def _check_rights(client: Any, namespaces: Sequence[str]) -> Iterator[str]:
    """A line for each namespace in which the guard may not do all that it would have to."""
    from model_release.release.rights import missing

    where_to: Sequence[str | None] = namespaces or [None]
    for namespace in where_to:
        where = f"In namespace {namespace}" if namespace else "In the whole cluster"
        try:
            if found := missing(client, namespace):
                yield f"{where} this account may not: {', '.join(found)} (include/manifests/guard.yaml has the rights)"
        except Exception as error:
            yield f"{where} nobody can tell what this account may: {type(error).__name__}: {error}"


def _tell(line: str, *, as_json: bool) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    print(json.dumps({"time": when, "said": line}) if as_json else f"{when} {line}", flush=True)
