"""What a person may do over the judge's head: take the traffic back now, or promote in spite of it.

Both are written into the release under way as an `Order` by a named person, with a reason, and then done by this hand,
a promotion by the same `drive` as the trigger's, which may do it at the same time. Airflow need not live; where it
does, the run sees the order, bakes, settles and reports as any other. Nothing here asks the store or Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from model_release.cluster.change import DIRECT, Baseline, Prove, Remember, tell_stopped, tell_traffic
from model_release.cluster.inference_service import InferenceService
from model_release.cluster.lease import Held, Lease
from model_release.cluster.leases import Leases
from model_release.cluster.progress import Progress, State, wait
from model_release.cluster.release import Cause, Order, Owner, Phase, Release, Watched
from model_release.cluster.services import InferenceServices
from model_release.cluster.settle import is_clean, settle
from model_release.errors import CanaryLost, ClusterUnavailable, NotSettled, ServiceBusy, SmokeFailed, SpecError
from model_release.release.advance import Rules
from model_release.release.back import take_back
from model_release.release.drive import Drive

if TYPE_CHECKING:
    from model_release.release.look import Watch

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
class ByHand:
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
) -> ByHand:
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
    return ByHand(_under_way(services, leases, lease, person, seconds=seconds, tell=tell, to=to))


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
) -> str:
    """The canary that is open is promoted whatever the judge says: ordered, by its revision's name, done and verified.

    Only a canary that its release opened, and which therefore answered its smoke prediction, can be meant. Again: finds
    the order, or the promotion.

    Raises:
        CanaryLost: no canary is open, it is not what was opened, or it was taken back by somebody else meanwhile.
        ClusterUnavailable: the gateway has not acted within `seconds`; the order stands.
        NotSettled: it does not act.
    """
    lease = leases.read(namespace, name)
    release = lease.release if lease else None
    if lease is None or release is None:
        raise CanaryLost(f"{namespace}/{name}: no release is under way, so there is no canary to promote")
    if not release.promoted:
        _check_open(services, release)
    if not release.promoted or release.trouble is not None:  # of a run that failed no hand promotes without an order
        order = person.order("promote", release.canary)
        lease = leases.update(namespace, name, release.owner, lambda now: _ordered(now, order))
        release = lease.release or release
        tell(Progress(State.WAITING, f"{release.canary}: {release.word}"))
    _drive(services, leases, release, person, seconds, tell)
    return f"{namespace}/{name}: {release.canary} has all of the traffic; {release.owner.url}"


def _check_open(services: InferenceServices, release: Release) -> None:
    key = release.key
    if release.phase is not Phase.OPEN or release.canary is None:
        raise CanaryLost(
            f"{key}: no canary is open ({release.stage}); only one that answered its smoke prediction and has traffic "
            "can be promoted"
        )
    live, baseline = services.get(release.namespace, release.name), release.baseline
    if live is not None and baseline is not None:
        if baseline.uid not in (None, live.uid):
            raise CanaryLost(f"{key} was deleted and made anew: it has no canary of this release")
        if told := tell_stopped(live, baseline.started):
            raise CanaryLost(f"{told}; there is no canary to promote")
    if live is None or live.latest_created != release.canary or live.canary_percent != release.percent:
        found = f"{live.latest_created} at {live.canary_percent} %" if live else "no InferenceService"
        raise CanaryLost(f"{key}: {release.canary} was opened at {release.percent} %, and there is {found}")


def _ordered(release: Release, order: Order) -> Release:
    """Not over an order to roll back, nor on another canary than the one that was looked at."""
    if release.went_back is not None:
        raise CanaryLost(f"{release.canary}: {release.went_back}")
    if release.canary != order.revision:
        raise CanaryLost(f"{order.revision} was meant, and {release.canary} is staged now")
    given = release.order is not None and release.order.revision == order.revision
    order = release.order if given and release.order else order
    return replace(release, order=order, phase=Phase.PROMOTED, word=str(order))


def _drive(
    services: InferenceServices, leases: Leases, release: Release, person: Person, seconds: float, tell: Tell
) -> None:
    """Drives a release that was given all of the traffic until the gateway has it."""
    drive = Drive(
        canary=release.as_canary,
        rules=Rules((release.watches[-1].percent or 0,) if release.watches else (0,)),
        services=services,
        leases=leases,
        owner=release.owner,
        watch=_nothing_to_watch,
        prove=_left_to_the_run,
        window=timedelta(seconds=1),
        patience=timedelta(seconds=seconds),
        hand=f"{person.name}'s command",
    )

    def step() -> Progress:
        lines = drive.look()
        said = lines[-1] if lines else "asked for"
        return Progress(State.READY if drive.done else State.WAITING, said)

    try:
        progress = wait(step, seconds, poll=0.5, tell=tell)
    except ServiceBusy as busy:
        live = services.get(release.namespace, release.name)
        if live is not None and live.gateway == {release.canary: 100} and live.rolled_out == release.canary:
            return  # its run was as fast, and has settled since
        told = tell_traffic(live) if live else "gone"
        raise CanaryLost(f"{release.key}: the release ended before the order was done; traffic is {told}") from busy
    if drive.done is None:
        raise ClusterUnavailable(f"{release.key}: the order stands, and has not taken effect: {progress.sentence}")
    if drive.done.decision != "promote":
        raise CanaryLost(f"{release.canary}: {drive.done.reason}")


def _nothing_to_watch(_: Sequence[Watched]) -> Watch:
    raise NotSettled("a promotion that was ordered is not judged")  # a drive does not ask while it promotes


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
    namespace, name, release = lease.namespace, lease.service, lease.release
    if release is None:
        raise ServiceBusy(f"the lease of {namespace}/{name} is held by {lease.holder}, which is no release")
    if release.promoted and (release.baseline is None or release.is_first):
        raise CanaryLost(f"{namespace}/{name}: {release.canary} is its first version; there is none to go back to")
    owner = release.owner
    _check_meant(f"{namespace}/{name}", release.left.baseline, to)
    # Whatever was proven of this canary, a person has said otherwise; `settle` must not take it for promoted.
    order = person.order("roll_back", release.canary)
    release = leases.update(namespace, name, owner, lambda now: _refuted(now, order)).release or release
    who, left = f"{owner.dag_id} {owner.run_id}", release.left.close(str(order), Cause.PERSON)
    if left.baseline is None:
        return f"{namespace}/{name}: {who} has not touched anything yet, and now it ends before it does"
    bar = leases.bar(namespace, name, owner)
    said = take_back(services, left, bar, seconds=seconds, prove=_left_to_the_run, tell=tell).sentence
    return f"{namespace}/{name}: {said}; {who} holds the service and will settle, or the sweep does: {owner.url}"


def _left_to_the_run(live: InferenceService) -> None:
    """Where the baseline itself is down, its restored template needs another revision, and that has to be asked before
    users meet it: by the run that holds the service, or by the sweep after it."""
    raise SmokeFailed(f"asking {live.latest_created} is left to the release that holds the service, and to the sweep")


def _nobody_asks(live: InferenceService) -> None:
    raise SmokeFailed(f"nobody can ask {live.latest_created} from here; DAG rollback_MODEL can")


def _refuted(release: Release, order: Order) -> Release:
    there = release.order if release.order is not None and release.order.kind == "roll_back" else order
    return replace(release, order=there).close(str(there), Cause.PERSON)


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
) -> ByHand:
    """No release is under way: back to what the last one found, and its template into the spec."""
    namespace, name, me, known = lease.namespace, lease.service, person.owner, lease.known
    live = services.get(namespace, name)
    if known is None or live is None or known.uid != live.uid or tell_stopped(live, known.started):
        raise CanaryLost(f"{namespace}/{name}: no earlier revision's template is on record; release its version anew")
    _check_meant(f"{namespace}/{name}", known, to)
    mine = lease.release if lease.holder == me.identity else None
    release = Release(me, namespace=namespace, name=name, baseline=known, insist=True)
    if mine is None and is_clean(live, release):
        said = f"{live.rolled_out} is what the last release found; there is nothing to roll back"
        return ByHand(f"{namespace}/{name}: {said}")
    # A person whose command was killed goes on with what it had barred. What has the stable template already is what an
    # earlier roll-back could not prove.
    canary = mine.canary if mine is not None else None if live.template == known.template else live.latest_created
    last = lease.last.canary if lease.last is not None else None
    if mine is None and to is None and None not in (canary, last) and canary != last:
        raise CanaryLost(
            f"{namespace}/{name}: {canary} came after {last} of the last release{live.other_writer()}, and what that "
            f"one found is {known.revision}: `roll-back --to {known.revision}` goes there, past {last}; {DIRECT}"
        )
    order = person.order("roll_back", canary)
    release = _begun(replace(release, barred=mine.barred if mine else ()), known, canary, order)
    remember: Remember = _nobody
    if lease.frozen is None or mine is not None:
        taken = leases.acquire(namespace, name, me, record=f"by-hand-{name}")
        if isinstance(taken, Held):
            raise ServiceBusy(f"{taken}; run this again")
        release = leases.update(namespace, name, me, lambda now: _begun(now, known, canary, order)).release or release
        remember = leases.bar(namespace, name, me)
    # Where the baseline runs no more (always so in Standard mode), what takes the traffic back is new, and asked first.
    proof = prove(known) if prove is not None else _nobody_asks
    take_back(services, release, remember, seconds=seconds, prove=proof, tell=tell)
    now = leases.read(namespace, name)
    current = now.release if now is not None and now.holder == me.identity else None
    said = settle(services, current or release, remember, deadline=seconds, prove=proof, tell=tell)
    leases.give_free(namespace, name, me, lambda ended: replace(ended, phase=Phase.SETTLED))
    return ByHand(f"{namespace}/{name}: {said}", alone=True)


def _begun(release: Release, baseline: Baseline, canary: str | None, order: Order) -> Release:
    begun = replace(release, baseline=baseline, canary=canary, order=release.order or order, insist=True)
    return begun.close(str(begun.order), Cause.PERSON)


def _nobody(_: str) -> Any:
    """A frozen service has no other hand than this one, and nobody to remember anything for."""
