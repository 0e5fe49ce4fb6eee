"""Closes an open canary that nobody looks at any more, whoever is to blame: a triggerer that died, a paused DAG, a
deleted task, an Airflow whose database is gone. It needs the Kubernetes API and nothing else.

A lease is a heartbeat: each look renews it. The guard goes by its own clock, as client-go's leader election does: it
remembers when it saw a renewTime for the first time, and one that has not changed for the lease's duration is over. No
two clocks are compared, and a guard that starts late waits for a whole duration first.

It takes traffic away and never gives any. What was promoted stays, and is told, unless its release has recorded that it
goes back; what is left besides is the sweep's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from model_release.cluster.dead import let_go
from model_release.cluster.objects import WriteConflict
from model_release.cluster.release import Cause
from model_release.cluster.rollout import death_of
from model_release.cluster.settle import assess_rolled_back, roll_back
from model_release.errors import ClusterUnavailable, ReleaseError

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Release
    from model_release.cluster.services import InferenceServices

# Seconds between two looks at all leases.
INTERVAL = 2.0
# Seconds for which a lease may go on without a heartbeat after the API was away: nobody could renew it meanwhile, and
# whoever looks comes back as late as the guard does.
GRACE = 10.0

Service = tuple[str, str]  # namespace and name of an InferenceService


@dataclass
class Guard:
    """Looks at every lease, again and again. Two guards at once, or one that is killed anywhere, do no harm: what was
    closed is in the lease before it is done.

    Args:
        namespaces: where to look; none: in the whole cluster. One that may not be listed is told, and hides no other.
        clock: seconds of a clock that never goes back.
    """

    leases: Leases
    services: InferenceServices
    namespaces: Collection[str]
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Service, tuple[str, float]] = field(default_factory=dict)  # renewTime, and when it was seen first
    _undecided: set[Service] = field(default_factory=set)
    _unlisted: list[str] = field(default_factory=list)  # in the last look
    _told: dict[object, str] = field(default_factory=dict)
    _was_away: bool = False

    def look(self) -> list[str]:
        """Looks once, and closes what is open and unwatched. Returns what there is to tell, each thing once. Whatever
        one service or namespace answers, the others are looked at."""
        found: list[Lease] = []
        guarded: set[str] = set()
        lines: list[str] = []
        where_to: list[str | None] = [*sorted(self.namespaces)] or [None]
        self._unlisted.clear()
        for namespace in where_to:
            where = f"namespace {namespace}" if namespace else "the whole cluster"
            try:
                found += self.leases.within(namespace)
                guarded |= {namespace} if namespace else set()
                self._told.pop(("list", namespace), None)
            except ClusterUnavailable as error:
                self._was_away = True
                self._unlisted.append(where)
                return [*lines, *self._tell(None, f"The cluster does not answer: {error}")]
            except Exception as error:
                self._unlisted.append(where)
                hint = "" if namespace else "; --namespace names one"
                lines += self._tell(("list", namespace), f"Nobody guards {where}{hint}: {_said(error)}")
        now, was_away = self.clock(), self._was_away
        self._was_away = False
        self._told.pop(None, None)
        self._undecided &= {(lease.namespace, lease.service) for lease in found}
        for lease in found:
            service = lease.namespace, lease.service
            try:
                if was_away:
                    renewed, since = self._seen.get(service, ("", now))
                    self._seen[service] = renewed, max(since, now - lease.duration + GRACE)
                lines += self._look_at(lease, service, now)
            except Exception as error:
                lines += self._tell(service, f"{'/'.join(service)}: {_said(error)}")
        return lines + self._beat(guarded | {lease.namespace for lease in found})

    @property
    def undecided(self) -> list[str]:
        """Releases of which it cannot be said yet whether somebody looks at them, and those whose canary is being
        closed; namespaces that could not be listed. Whoever looks only now and then looks until there are none."""
        return [*self._unlisted, *("/".join(service) for service in sorted(self._undecided))]

    def _beat(self, namespaces: Collection[str]) -> list[str]:
        """Says in each namespace that a guard runs. Where that cannot be done nothing is lost but the word."""
        lines: list[str] = []
        for namespace in sorted(namespaces):
            try:
                self.leases.beat(namespace)
                self._told.pop(("beat", namespace), None)
            except Exception as error:
                told = f"Nobody can see that namespace {namespace} is guarded: {_said(error)}"
                lines += self._tell(("beat", namespace), told)
        return lines

    def _look_at(self, lease: Lease, service: Service, now: float) -> list[str]:
        release = lease.release
        self._undecided.discard(service)
        if release is None:
            self._seen.pop(service, None)
            return []
        before = self._seen.get(service)
        if before is None or before[0] != lease.renewed:
            self._seen[service] = (lease.renewed, now)
            if release.closed is None:
                self._told.pop(service, None)
        quiet = now - self._seen[service][1]
        if release.closed is None and quiet < lease.duration:
            if before is None or before[0] == lease.renewed:
                self._undecided.add(service)
            return []
        live = self.services.get(*service) if release.baseline is not None else None
        is_left = live is not None and quiet >= lease.duration and _is_left(live, release)
        if live is None or not (_is_open(live, release) or is_left):
            if release.promoted and quiet >= lease.duration:
                dead = death_of(live, str(release.canary))
                told = f"{'/'.join(service)}: {release.canary} is promoted, and nobody looks at it"
                return self._tell(service, f"{told}; {dead}" if dead else told)
            return []
        if release.closed is None:
            why = f"closed: nobody looked for {round(quiet)} s"
            try:
                release = self.leases.write(lease, release.close(why, Cause.GUARD))
            except WriteConflict:
                return []  # somebody looks after all, or has promoted it meanwhile: the next look sees which
        self._undecided.add(service)
        return self._close(live, service, release)

    def _close(self, live: InferenceService, service: Service, release: Release) -> list[str]:
        """One step. The next look goes on, until the gateway has it."""
        if live.canary_percent != 0:
            after = roll_back(self.services, release, self.leases.bar(*service, release.owner))
            told = assess_rolled_back(after, release).sentence
        else:
            freed = let_go(self.services, live, release)
            told = str(freed or assess_rolled_back(live, release))
        return self._tell(service, f"{'/'.join(service)}: {release.canary} {release.closed}; {told}")

    def _tell(self, about: object, line: str) -> list[str]:
        """The line, when it is new."""
        told = self._told.get(about)
        self._told[about] = line
        return [] if line == told else [line]


def _is_open(live: InferenceService, release: Release) -> bool:
    """Whether the canary of this release has users, by the spec or at the gateway. A first deployment has nobody to
    give them back to, and a promotion that was done is no canary any more."""
    if release.stable.revision is None or not live.is_split or release.canary is None:
        return False
    return bool(live.canary_percent) or bool(live.serving.get(release.canary))


def _is_left(live: InferenceService, release: Release) -> bool:
    """Whether a promoted canary was to be taken back, by evidence or because it died, and still has users. Only while
    KServe knows the baseline as the revision before, so that 0 % does it."""
    before = release.stable.revision
    if release.closed is None or live.is_split or before is None:
        return False
    return live.previous_rolled_out == before and live.serving == {release.canary: 100}


def _said(error: Exception) -> str:
    """One line. What is no error of ours is an answer that nobody expected."""
    if isinstance(error, ReleaseError):
        return str(error)
    return f"the API gave an odd answer ({type(error).__name__}: {error})"


@dataclass
class Beats:
    """Whether guards run, by their own leases: one is alive whose renewTime was seen to change within its duration, by
    the clock of who looks, as in client-go's leader election. At first sight there is only the time that it says: it
    is believed where it fits this machine's clock. May be kept for long, and shared by threads.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[Service, tuple[str, float, bool]] = field(default_factory=dict)  # renewTime, since when, does it count

    def alive(self, lease: Lease | None) -> bool:
        if lease is None or not lease.renewed:
            return False
        now = self.clock()
        one = lease.namespace, str(lease.raw["metadata"].get("uid"))
        renewed, since, counts = self._seen.get(one, ("", now, False))
        if renewed != lease.renewed:
            since, counts = now, "" < renewed < lease.renewed or _is_now(lease)
            self._seen[one] = lease.renewed, since, counts
        return counts and now - since < lease.duration


def _is_now(lease: Lease) -> bool:
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(lease.renewed)
    except (ValueError, TypeError):
        return False
    return abs(age.total_seconds()) < lease.duration
