"""The emergency ways, without Airflow: `python -m model_release freeze | thaw | roll-back SERVICE`.

They need a kubeconfig that may get and patch InferenceServices and Leases, and nothing else: they work while Airflow,
Prometheus and S3 are down. SERVICE is `namespace/name`, or the name of a model in include/models/.

- `freeze SERVICE REASON`: no release may begin until `thaw`; one that is under way goes on.
- `thaw SERVICE`: releases may begin again.
- `roll-back SERVICE`: the traffic goes to the baseline now: the revision before the canary or, after a promotion, the
  one before the promoted one. A release that is under way sees that its canary is gone, settles and fails.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_release.errors import CanaryLost, NotSettled, ReleaseError, ServiceBusy, SpecError
from model_release.model_file import load_all

if TYPE_CHECKING:
    from model_release.serving.inference_service import InferenceServices
    from model_release.serving.lease import Claim, Lease, Leases, Owner
    from model_release.serving.rollout import Baseline
    from model_release.serving.settle import Release

PROJECT = Path(__file__).resolve().parents[2]
# As for a roll-back by a run: a split takes seconds, a baseline that has to start anew takes as long as it takes.
_SECONDS = 900.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 1 with one line on stderr when not."""
    options = _parser().parse_args(argv)
    try:
        client = _client(options.kubeconfig)
        print(options.run(client, *_service(options.service, options.models), options))
    except ReleaseError as error:
        print(f"model_release: {error} -- to be mended by {error.mended_by}", file=sys.stderr)
        return 1
    return 0


def _freeze(client: Any, namespace: str, name: str, options: argparse.Namespace) -> str:
    """No release may begin until it is lifted. Run again, the last reason stands."""
    from model_release.serving.lease import Leases

    when = datetime.now(UTC).isoformat(timespec="seconds")
    lease = Leases(client).freeze(namespace, name, f"{options.reason} ({getpass.getuser()}, {when})")
    under_way = f"; {lease.holder} is under way and goes on" if lease.holder else ""
    return f"{namespace}/{name} is frozen: {lease.frozen}{under_way}"


def _thaw(client: Any, namespace: str, name: str, _: argparse.Namespace) -> str:
    """Releases may begin again. Run again: nothing."""
    from model_release.serving.lease import Leases

    Leases(client).freeze(namespace, name, None)
    return f"{namespace}/{name} may be released again"


def _roll_back(client: Any, namespace: str, name: str, options: argparse.Namespace) -> str:
    """The traffic goes to the baseline now. Run again: finds it there."""
    from model_release.serving.inference_service import InferenceServices
    from model_release.serving.lease import Leases

    services, leases = InferenceServices(client), Leases(client)
    lease = leases.read(namespace, name)
    if lease is None:
        raise CanaryLost(f"{namespace}/{name} was never released by this project: there is no baseline on record")
    if lease.holder is not None:
        return _under_way(services, leases, lease, options.seconds)
    return _afterwards(services, leases, lease, options.seconds)


def _under_way(services: InferenceServices, leases: Leases, lease: Lease, seconds: float) -> str:
    """A release holds the service: its canary loses the traffic, and the run, which sees that, does the rest."""
    namespace, name = lease.namespace, lease.service
    claim = lease.claim
    if claim is None:
        raise ServiceBusy(f"the lease of {namespace}/{name} is held by {lease.holder}, which is no release")
    owner = claim.owner
    by_hand = f"rolled back by {getpass.getuser()}"
    # Whatever was proven of this canary, a person has said otherwise; `settle` must not take it for promoted.
    leases.update(namespace, name, owner, lambda claim: _refuted(claim, by_hand))
    release = claim.left.as_release(namespace, name)
    if release is None:
        return f"{namespace}/{name}: {owner.dag_id} {owner.run_id} has not touched anything yet"
    said = _to_baseline(services, replace(release, promoted=False), leases.bar(namespace, name, owner), seconds)
    return f"{namespace}/{name}: {said}; {owner.dag_id} {owner.run_id} holds the service and will settle: {owner.url}"


def _afterwards(services: InferenceServices, leases: Leases, lease: Lease, seconds: float) -> str:
    """No release is under way: back to what the last one found, and its template into the spec."""
    from model_release.serving.lease import Held
    from model_release.serving.settle import Release, settle

    namespace, name, known = lease.namespace, lease.service, lease.known
    live = services.get(namespace, name)
    if known is None or live is None or known.uid != live.uid:
        raise CanaryLost(f"{namespace}/{name}: no earlier revision's template is on record; release its version anew")
    if live.rolled_out == known.revision or live.template == known.template:
        return f"{namespace}/{name}: {live.rolled_out} is what the last release found; there is nothing to roll back"
    release = Release(namespace, name, known, live.latest_created)
    remember: Callable[[str], None] = _nobody
    me = _by_hand()
    if lease.frozen is None:
        taken = leases.acquire(namespace, name, me, release=f"by-hand-{name}")
        if isinstance(taken, Held):
            raise ServiceBusy(f"{taken}; run this command again")
        canary = live.latest_created
        leases.update(namespace, name, me, lambda claim: _begun(claim, known, canary))
        remember = leases.bar(namespace, name, me)
    _to_baseline(services, release, remember, seconds)
    said = settle(services, release, remember, deadline=seconds, tell=_tell)
    leases.release(namespace, name, me)
    return f"{namespace}/{name}: {said}"


def _to_baseline(services: InferenceServices, release: Release, remember: Callable[[str], None], seconds: float) -> str:
    from model_release.serving.progress import Progress, State, wait
    from model_release.serving.settle import assess_rolled_back, roll_back

    barred = list(release.barred)

    def note(revision: str) -> None:
        remember(revision)
        barred.append(revision)

    def step() -> Progress:
        return assess_rolled_back(roll_back(services, replace(release, barred=tuple(barred)), note), release)

    progress = wait(step, seconds, poll=0.5, tell=_tell)
    if progress.state is not State.READY:
        raise NotSettled(f"the roll-back did not take effect: {progress.sentence}")
    return progress.sentence


def _refuted(claim: Claim, stage: str) -> Claim:
    return replace(claim, promoted=False, stage=stage)


def _begun(claim: Claim, baseline: Baseline, canary: str | None) -> Claim:
    return replace(claim, baseline=baseline, canary=canary, stage="rolling back by hand")


def _by_hand() -> Owner:
    """The same for the same person, who can therefore run the command again after it was killed."""
    from model_release.serving.lease import Owner

    return Owner("python -m model_release roll-back", getpass.getuser(), "", "by hand")


def _nobody(_: str) -> None:
    """A frozen service has no other hand than this one, and nobody to remember anything for."""


def _tell(progress: Any) -> None:
    print(f"  {progress}", flush=True)


def _client(kubeconfig: Path | None) -> Any:
    from kubernetes import config
    from kubernetes.client import ApiClient

    try:
        if kubeconfig is not None:
            return config.new_client_from_config(str(kubeconfig))
        config.load_config()
        return ApiClient()
    except config.ConfigException as error:
        raise SpecError(f"no cluster to talk to: {error}; --kubeconfig FILE names one") from error


def _service(given: str, models: Path) -> tuple[str, str]:
    """(namespace, name) of `namespace/name`, or of the service that a model is released on."""
    namespace, slash, name = given.partition("/")
    if slash:
        return namespace, name
    specs = load_all(models)
    if given not in specs:
        known = ", ".join(specs) or "none"
        raise SpecError(f"{given!r} is no model of {models} ({known}); a service is written namespace/name")
    return specs[given].service.namespace, specs[given].service.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_release", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[..., str]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.add_argument("service", metavar="SERVICE", help="namespace/name, or a model's name")
        added.add_argument("--kubeconfig", type=Path, help="(KUBECONFIG, ~/.kube/config, or the pod's own)")
        added.add_argument("--models", type=Path, default=PROJECT / "include" / "models", help="where model files are")
        added.set_defaults(run=run)
        return added

    command("freeze", _freeze).add_argument("reason", metavar="REASON", help="why; shown to whoever has to wait")
    command("thaw", _thaw)
    command("roll-back", _roll_back).add_argument(
        "--seconds", type=float, default=_SECONDS, help="how long to wait until it has taken effect (900)"
    )
    return parser
