"""The emergency ways, without Airflow's UI: `python -m model_release freeze | thaw | roll-back | promote SERVICE`.

They need a kubeconfig that may get and patch InferenceServices and Leases, and nothing else: they work while Airflow,
Prometheus and S3 are down; only what a roll-back has to start anew is asked first, by the store's smoke prediction, and
gets no traffic while that cannot be read. SERVICE is `namespace/name`, or the name of a model in include/models/.

- `freeze SERVICE REASON`: no release may begin until `thaw`; one that is under way goes on.
- `thaw SERVICE`: releases may begin again.
- `roll-back SERVICE`: the traffic goes to the baseline now: the revision before the canary or, after a promotion, the
  one before the promoted one. A release that is under way sees the order, settles and ends as rolled back.
- `promote SERVICE --reason …`: the canary that is open is promoted now, whatever the judge says; the release that is
  under way finds it so, and has who and why in its record.

docs/runbook.md says when to use which.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.commands import surroundings
from model_release.errors import SpecError

if TYPE_CHECKING:
    from model_release.cluster.change import Baseline, Prove
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.release.emergency import Person

# As for a roll-back by a run: a split takes seconds, a baseline that has to start anew takes as long as it takes.
_SECONDS = 900.0
# A DNS label (RFC 1123), as Kubernetes has them for namespaces: these names become parts of addresses.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def register(commands: Any) -> None:
    """Adds the emergency commands to those of `python -m model_release`."""

    def command(name: str, run: Callable[..., str], *, store: bool = False) -> argparse.ArgumentParser:
        other = ["rollback"] if name == "roll-back" else []
        added: argparse.ArgumentParser = commands.add_parser(
            name, aliases=other, help=run.__doc__, description=run.__doc__
        )
        added.add_argument("service", metavar="SERVICE", help="namespace/name, or a model's name")
        surroundings.add_options(added, cluster=True, store=store)
        added.set_defaults(run=partial(_on_service, run))
        return added

    command("freeze", _freeze).add_argument("reason", metavar="REASON", help="why; shown to whoever has to wait")
    command("thaw", _thaw)
    for name, run, reason in (("roll-back", _roll_back, {"default": "no reason given"}), ("promote", _promote, {})):
        added = command(name, run, store=name == "roll-back")
        added.add_argument("--reason", required=not reason, help="why; kept in the decision record", **reason)
        added.add_argument(
            "--seconds", type=float, default=_SECONDS, help="how long to wait until it has taken effect (900)"
        )
        if name == "roll-back":
            added.add_argument(
                "--to", metavar="REVISION", help="the revision that is meant; refused when it is another"
            )
            added.add_argument(
                "--ingress", metavar="URL", help="of the gateway, where its services' names do not resolve"
            )


def _on_service(run: Callable[..., str], options: argparse.Namespace) -> str:
    return run(surroundings.cluster(options.kubeconfig), *_service(options.service, options.models), options)


def _freeze(client: Any, namespace: str, name: str, options: argparse.Namespace) -> str:
    """No release may begin until it is lifted. Run again, the last reason stands."""
    from model_release.cluster.leases import Leases

    when = datetime.now(UTC).isoformat(timespec="seconds")
    lease = Leases(client).freeze(namespace, name, f"{options.reason} ({surroundings.user()}, {when})")
    under_way = f"; {lease.holder} is under way and goes on" if lease.holder else ""
    return f"{namespace}/{name} is frozen: {lease.frozen}{under_way}"


def _thaw(client: Any, namespace: str, name: str, _: argparse.Namespace) -> str:
    """Releases may begin again. Run again: nothing."""
    from model_release.cluster.leases import Leases

    Leases(client).freeze(namespace, name, None)
    return f"{namespace}/{name} may be released again"


def _roll_back(client: Any, namespace: str, name: str, options: argparse.Namespace) -> str:
    """The traffic goes to the baseline now, and to nothing that did not answer. Run again: finds it there."""
    from model_release.release.emergency import roll_back_now
    from model_release.tasks.proof import prover

    def prove(baseline: Baseline) -> Prove:
        return prover(
            baseline.storage_uri,
            lambda line, *given: print(f"  {line % given}", flush=True),
            store_at=lambda prefix: surroundings.store(options, prefix),
            ingress=lambda: options.ingress or surroundings.ingress(options),
        )

    person = _person("roll-back", options.reason)
    hands = _hands(client)
    return roll_back_now(
        *hands, namespace, name, person, seconds=options.seconds, tell=_tell, prove=prove, to=options.to
    ).sentence


def _promote(client: Any, namespace: str, name: str, options: argparse.Namespace) -> str:
    """The canary that is open is promoted in spite of the judge. Run again: finds it promoted."""
    from model_release.release.emergency import promote_anyway

    person = _person("promote", options.reason)
    return promote_anyway(*_hands(client), namespace, name, person, seconds=options.seconds, tell=_tell)


def _hands(client: Any) -> tuple[InferenceServices, Leases]:
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices

    return InferenceServices(client), Leases(client)


def _person(command: str, reason: str) -> Person:
    """The same owner for the same person, who can therefore run the command again after it was killed."""
    from model_release.cluster.release import Owner
    from model_release.release.emergency import Person

    who = surroundings.user()
    return Person(who, reason, Owner(f"python -m model_release {command}", who, "", "by hand"))


def _tell(progress: Any) -> None:
    print(f"  {progress}", flush=True)


def _service(given: str, models: Path) -> tuple[str, str]:
    """(namespace, name) of `namespace/name`, or of the service that a model is released on."""
    namespace, slash, name = given.partition("/")
    if slash:
        if not (_LABEL.fullmatch(namespace) and _LABEL.fullmatch(name)):
            raise SpecError(f"{given!r} is no service; a service is written namespace/name, as models/digits")
        return namespace, name
    service = surroundings.model(models, given, "; a service is written namespace/name").service
    return service.namespace, service.name
