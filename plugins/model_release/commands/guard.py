"""`python -m model_release guard`: closes open canaries that nobody looks at any more (`release.guard`).

It runs for ever beside Airflow and needs the Kubernetes API and nothing else; include/manifests/guard.yaml is its
Deployment. `--once` looks once, for whoever has a scheduler of their own: such a look can only finish what another one
has begun to close, since it has not seen any lease stand still.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from datetime import UTC, datetime
from typing import Any

from model_release.commands import surroundings


def register(commands: Any) -> None:
    """Adds `guard` to the commands of `python -m model_release`."""
    says = "closes open canaries that nobody looks at any more"
    added = commands.add_parser("guard", help=says, description=(__doc__ or "").split("\n\n", 1)[1])
    added.add_argument(
        "--namespace", action="append", default=[], help="where to look, where the whole cluster may not be listed"
    )
    added.add_argument("--interval", type=float, help="seconds between two looks (2)")
    added.add_argument("--once", action="store_true", help="look once")
    added.add_argument("--json", action="store_true", help="a line of JSON for each thing that there is to tell")
    surroundings.add_options(added, cluster=True)
    added.set_defaults(run=_guard)


def _guard(options: argparse.Namespace) -> str:
    from model_release.cluster.inference_service import InferenceServices
    from model_release.cluster.leases import Leases
    from model_release.release.guard import INTERVAL, Guard

    client = surroundings.cluster(options.kubeconfig)
    client.user_agent = "model-release-guard/1"
    guard = Guard(Leases(client), InferenceServices(client), options.namespace)
    ended = threading.Event()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while True:
        for line in guard.look():
            _tell(line, as_json=options.json)
        if options.once or ended.wait(options.interval or INTERVAL):
            return "" if options.json else "The guard has ended."


def _tell(line: str, *, as_json: bool) -> None:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    print(json.dumps({"time": when, "said": line}) if as_json else f"{when} {line}", flush=True)
