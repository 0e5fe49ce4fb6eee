"""What a person may do over the judge's head: take the traffic back now, or promote in spite of it.

Both are written into the lease of the release under way as an `Order` by a named person, with a reason. Its tasks see
it: a roll-back is done here, at once, and the run then only settles; a promotion is left to the run, which verifies,
bakes and reports it as any other. Nothing here asks the store or Prometheus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from model_release.cluster.change import DIRECT, tell_stopped
from model_release.cluster.inference_service import InferenceService, InferenceServices
from model_release.cluster.lease import Claim, Held, Lease, Leases, Order, Owner
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.rollout import Baseline, tell_traffic
from model_release.cluster.settle import Prove, Release, Remember, assess_rolled_back, is_clean, roll_back, settle
from model_release.errors import CanaryLost, ClusterUnavailable, NotSettled, ServiceBusy, SmokeFailed, SpecError

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Person:
    """Who orders it, and why. `owner` holds the lease meanwhile when no release does."""

    name: str
    reason: str
    owner: Owner

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise SpecError("a reason is needed: it is all that the next reader will know")

    def order(self, kind: Literal["promote", "roll_back"], revision: str | None) -> Order:
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Order(kind, self.name, " ".join(self.reason.split()), when, revision)


@dataclass(frozen=True)
class Done:
    """What was done, in a sentence. `alone`: traffic was moved, and no release is under way that will record it."""

    sentence: str
    alone: bool = False


def roll_back_now(
    services: InferenceServices,
    leases: Leases,
    namespace: str,
    name: str,
    person: Person,
    *,
    seconds: float,
    tell: Tell,
    prove: Callable[[Baseline], Prove] | None = None,
    to: str | None = None,
) -> Done:
    """The traffic goes to the baseline: the revision before the canary or, when no release is under way, the one before
    the last promotion. To no other one, and to none that did not answer. Again: finds it there, and brings what could
    not be brought back the first time.

    A release under way sees the order, settles and ends as rolled back. Otherwise the stable template is brought back
    into the spec here, too.

    Args:
        seconds: how long it may take. A split takes seconds; a baseline that is gone has to start anew.
        prove: gives what asks the restored revision before it gets traffic (see `settle`); None: nobody can ask here,
            and it gets none.
        to: the revision that is meant; None: the one that there is.

    Raises:
        CanaryLost: there is nothing on record to go back to, or not to what was asked for.
        NotSettled: it did not take effect.
        ServiceBusy: somebody else's hand is on the service at this moment.
    """
    lease = leases.read(namespace, name)
    if lease is None:
        raise CanaryLost(f"{namespace}/{name} was never released by this project: there is no baseline on record")
    if lease.holder in (None, person.owner.identity):
        return _afterwards(services, leases, lease, person, seconds=seconds, tell=tell, prove=prove, to=to)
    return Done(_under_way(services, leases, lease, person, seconds=seconds, tell=tell, to=to))


def _check_meant(key: str, baseline: Baseline | None, to: str | None) -> None:
    there = baseline.revision if baseline else None
    if to is not None and to != there:
        raise CanaryLost(f"{key}: {to} was asked for, and a roll-back goes to {there or 'nothing'} alone; {DIRECT}")


def promote_anyway(
    services: InferenceServices,
    leases: Leases,
    namespace: str,
    name: str,
    person: Person,
    *,
    seconds: float,
    tell: Tell,
    poll: float = 1.0,
) -> str:
    """The canary that is open is promoted whatever the judge says: ordered, by its revision's name, and waited for.

    Only a canary that its release opened, and which therefore answered its smoke prediction, can be meant. The release
    does it: the watch ends, every further step passes, and all of the traffic is verified by name. Again: finds the
    order, or the promotion.

    Raises:
        CanaryLost: no canary is open, it is not what was opened, it was taken back by somebody else meanwhile, or the
            release ended before it saw the order.
        ClusterUnavailable: the run has not acted within `seconds`; the order stands.
    """
    lease = leases.read(namespace, name)
    claim = lease.claim if lease else None
    if lease is None or claim is None:
        raise CanaryLost(f"{namespace}/{name}: no release is under way, so there is no canary to promote")
    if not claim.promoted:
        _check_open(services, lease, claim)
        order = person.order("promote", claim.canary)
        leases.update(namespace, name, claim.owner, lambda now: _ordered(now, order))
        tell(Progress(State.WAITING, f"{claim.canary}: {order}; {claim.owner.run_id} acts on it"))
    return _until_promoted(services, leases, lease, claim, seconds, poll)


def _check_open(services: InferenceServices, lease: Lease, claim: Claim) -> None:
    key = f"{lease.namespace}/{lease.service}"
    if claim.canary is None or not claim.percent or not claim.stage.startswith("open at "):
        raise CanaryLost(
            f"{key}: no canary is open ({claim.stage}); only one that answered its smoke prediction and has traffic "
            "can be promoted"
        )
    live, baseline = services.get(lease.namespace, lease.service), claim.baseline
    if live is not None and baseline is not None:
        if baseline.uid not in (None, live.uid):
            raise CanaryLost(f"{key} was deleted and made anew: it has no canary of this release")
        if told := tell_stopped(live, baseline.started):
            raise CanaryLost(f"{told}; there is no canary to promote")
    if live is None or live.latest_created != claim.canary or live.canary_percent != claim.percent:
        found = f"{live.latest_created} at {live.canary_percent} %" if live else "no InferenceService"
        raise CanaryLost(f"{key}: {claim.canary} was opened at {claim.percent} %, and there is {found}")


def _ordered(claim: Claim, order: Order) -> Claim:
    """Not over an order to roll back, nor on another canary than the one that was looked at."""
    if claim.order is not None and claim.order.kind == "roll_back":
        raise CanaryLost(f"{claim.canary}: {claim.order}")
    if claim.canary != order.revision:
        raise CanaryLost(f"{order.revision} was meant, and {claim.canary} is staged now")
    given = claim.order is not None and claim.order.revision == order.revision
    return claim if given else replace(claim, order=order)


def _until_promoted(
    services: InferenceServices, leases: Leases, lease: Lease, claim: Claim, seconds: float, poll: float
) -> str:
    namespace, name, canary, end = lease.namespace, lease.service, claim.canary, time.monotonic() + seconds
    while True:
        try:
            live, held = services.get(namespace, name), leases.read(namespace, name)
            if live is not None and live.gateway == {canary: 100} and live.rolled_out == canary:
                return f"{namespace}/{name}: {canary} has all of the traffic; {claim.owner.url}"
            current = held.claim if held else None
            if current is not None and current.owner.identity != claim.owner.identity:
                current = None
            if current is not None and current.order is not None and current.order.kind == "roll_back":
                raise CanaryLost(f"{canary}: {current.order}")
            if current is None or (current.order is None and not current.promoted):
                raise CanaryLost(
                    f"{namespace}/{name}: the release ended before it saw the order; traffic is "
                    f"{tell_traffic(live) if live else 'gone'}: {claim.owner.url}"
                )
        except ClusterUnavailable:
            if time.monotonic() >= end:
                raise
        if time.monotonic() >= end:
            raise ClusterUnavailable(
                f"{namespace}/{name}: the order stands, and {claim.owner.dag_id} {claim.owner.run_id} has not acted "
                f"on it yet; do Airflow's scheduler and triggerer run? {claim.owner.url}"
            )
        time.sleep(poll)


def _under_way(
    services: InferenceServices,
    leases: Leases,
    lease: Lease,
    person: Person,
    *,
    seconds: float,
    tell: Tell,
    to: str | None,
) -> str:
    """A release holds the service: its canary loses the traffic, and the run, which sees the order, does the rest."""
    namespace, name, claim = lease.namespace, lease.service, lease.claim
    if claim is None:
        raise ServiceBusy(f"the lease of {namespace}/{name} is held by {lease.holder}, which is no release")
    if claim.promoted and (claim.baseline is None or claim.baseline.revision is None):
        raise CanaryLost(f"{namespace}/{name}: {claim.canary} is its first version; there is none to go back to")
    owner = claim.owner
    _check_meant(f"{namespace}/{name}", claim.left.baseline, to)
    # Whatever was proven of this canary, a person has said otherwise; `settle` must not take it for promoted.
    order = person.order("roll_back", claim.canary)
    lease = leases.update(namespace, name, owner, lambda now: _refuted(now, order))
    claim = lease.claim or claim
    release = claim.left.as_release(namespace, name)
    who = f"{owner.dag_id} {owner.run_id}"
    if release is None:
        return f"{namespace}/{name}: {who} has not touched anything yet, and now it ends before it does"
    release = replace(release, promoted=False, insist=True)
    said = _to_baseline(services, release, leases.bar(namespace, name, owner), seconds, tell, _left_to_the_run)
    return f"{namespace}/{name}: {said}; {who} holds the service and will settle, or the sweep does: {owner.url}"


def _left_to_the_run(live: InferenceService) -> None:
    """Where the baseline itself is down, its restored template needs another revision, and that has to be asked before
    users meet it: by the run that holds the service, or by the sweep after it."""
    raise SmokeFailed(f"asking {live.latest_created} is left to the release that holds the service, and to the sweep")


def _nobody_asks(live: InferenceService) -> None:
    raise SmokeFailed(f"nobody can ask {live.latest_created} from here; DAG rollback_MODEL can")


def _refuted(claim: Claim, order: Order) -> Claim:
    there = claim.order if claim.order is not None and claim.order.kind == "roll_back" else order
    return replace(claim, promoted=False, stage=f"rolled back by {there.who}", order=there)


def _afterwards(
    services: InferenceServices,
    leases: Leases,
    lease: Lease,
    person: Person,
    *,
    seconds: float,
    tell: Tell,
    prove: Callable[[Baseline], Prove] | None,
    to: str | None,
) -> Done:
    """No release is under way: back to what the last one found, and its template into the spec."""
    namespace, name, me, known = lease.namespace, lease.service, person.owner, lease.known
    live = services.get(namespace, name)
    if known is None or live is None or known.uid != live.uid or tell_stopped(live, known.started):
        raise CanaryLost(f"{namespace}/{name}: no earlier revision's template is on record; release its version anew")
    _check_meant(f"{namespace}/{name}", known, to)
    mine = lease.claim if lease.holder == me.identity else None
    if mine is None and is_clean(live, Release(namespace, name, known)):
        said = f"{live.rolled_out} is what the last release found; there is nothing to roll back"
        return Done(f"{namespace}/{name}: {said}")
    # A person whose command was killed goes on with what it had barred. What has the stable template already is what an
    # earlier roll-back could not prove.
    canary = mine.canary if mine is not None else None if live.template == known.template else live.latest_created
    last = lease.last.canary if lease.last is not None else None
    if mine is None and to is None and None not in (canary, last) and canary != last:
        raise CanaryLost(
            f"{namespace}/{name}: {canary} came after {last} of the last release{live.other_writer()}, and what that "
            f"one found is {known.revision}: `roll-back --to {known.revision}` goes there, past {last}; {DIRECT}"
        )
    release = Release(namespace, name, known, canary, barred=mine.barred if mine else (), insist=True)
    remember: Remember = _nobody
    if lease.frozen is None or mine is not None:
        taken = leases.acquire(namespace, name, me, release=f"by-hand-{name}")
        if isinstance(taken, Held):
            raise ServiceBusy(f"{taken}; run this again")
        order = person.order("roll_back", canary)
        leases.update(namespace, name, me, lambda claim: _begun(claim, known, canary, order))
        remember = leases.bar(namespace, name, me)
    # Where the baseline runs no more (always so in Standard mode), what takes the traffic back is new, and asked first.
    proof = prove(known) if prove is not None else _nobody_asks
    _to_baseline(services, release, remember, seconds, tell, proof)
    barred = _barred(leases, lease, me) or release.barred
    said = settle(services, replace(release, barred=barred), remember, deadline=seconds, prove=proof, tell=tell)
    leases.release(namespace, name, me)
    return Done(f"{namespace}/{name}: {said}", alone=True)


def _barred(leases: Leases, lease: Lease, me: Owner) -> tuple[str, ...]:
    now = leases.read(lease.namespace, lease.service)
    claim = now.claim if now is not None and now.holder == me.identity else None
    return claim.barred if claim is not None else ()


def _begun(claim: Claim, baseline: Baseline, canary: str | None, order: Order) -> Claim:
    return replace(claim, baseline=baseline, canary=canary, stage="rolling back by hand", order=claim.order or order)


def _to_baseline(
    services: InferenceServices,
    release: Release,
    remember: Remember,
    seconds: float,
    tell: Tell,
    prove: Prove | None = None,
) -> str:
    barred = list(release.barred)

    def note(revision: str) -> None:
        remember(revision)
        barred.append(revision)

    def step() -> Progress:
        live = roll_back(services, replace(release, barred=tuple(barred)), note, prove)
        progress = assess_rolled_back(live, release)
        if live is not None and live.is_stopped and progress.state is State.LOST:
            return Progress(State.READY, f"{progress.sentence}; nobody is served, and it starts without the canary")
        return progress

    progress = wait(step, seconds, poll=0.5, tell=tell)
    if progress.state is not State.READY:
        raise NotSettled(f"the roll-back did not take effect: {progress.sentence}")
    return progress.sentence


def _nobody(_: str) -> Any:
    """A frozen service has no other hand than this one, and nobody to remember anything for."""
