"""Which versions stay in the store, and the removal of the others.

A version stays while it is one of the newest, while it is young, and while anything may still need it: the service as
it is, in every cluster that ever served from the store, a lease, a record that is young or of a release that has not
ended. Where one of these cannot be read, nothing is removed: no data is never good news.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from model_release.errors import CanaryLost, ServiceBusy, VersionDamaged
from model_release.release.index import History, version_of
from model_release.release.live import Revisions, baselines, unknown

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Owner
    from model_release.cluster.services import InferenceServices
    from model_release.judging.record import Record
    from model_release.spec.build import Keep
    from model_release.store.store import Store, Version

BUILDS = "builds/"
EVALUATIONS = "evaluations/"

# A run without a version is about to choose one; after a day it is over, whatever its record says.
_CHOOSING = timedelta(days=1)


@dataclass(frozen=True)
class Cluster:
    """A cluster that may serve versions of the store."""

    server: str  # the API's address, for people
    services: InferenceServices
    leases: Leases


@dataclass(frozen=True)
class LiveService:
    """One InferenceService of one cluster, as it is now. `live` None: there is none."""

    key: str  # namespace/name
    live: InferenceService | None
    lease: Lease | None
    server: str = ""


@dataclass(frozen=True)
class Pruning:
    """What would be removed. `keeps` is {version: reasons}; `builds` are folders below `builds/`, finished or not;
    `answers` are objects below `evaluations/` of archives that no version has (any more)."""

    keeps: dict[str, list[str]]
    removes: dict[str, str]  # {version: why}
    rest: list[str]  # what is left of versions whose removal was begun and cut off: no record
    builds: dict[str, int]  # {folder: bytes}
    answers: dict[str, int]  # {object: bytes}
    bytes: int

    @property
    def empty(self) -> bool:
        return not (self.removes or self.rest or self.builds or self.answers)


@dataclass
class Uses:
    """Why versions are needed: {version: reasons}, the most pressing first."""

    of: dict[str, list[str]] = field(default_factory=dict)

    def add(self, version: str | None, why: str) -> None:
        if version and why not in self.of.setdefault(version, []):
            self.of[version].append(why)


def services_of(
    store: Store, keys: Iterable[str], clusters: Sequence[Cluster], gone: Collection[str] = ()
) -> list[LiveService]:
    """The services by `keys` (namespace/name) and every other one that a release of this store was for, in each of the
    clusters.

    A release records the uid of its service's Lease, which is of one cluster alone: the store itself knows where its
    versions were served. What an older edition recorded without it is looked for by its name.

    Args:
        gone: uids of such Leases, or services (namespace/name), of which a person says that they are gone for good.

    Raises:
        VersionDamaged: a record cannot be read.
        CanaryLost: a release went to a cluster that is none of these, so nobody knows what it serves.
        ReleaseError: what a cluster refuses, and that it does not answer.
    """
    records = list(_records(store))
    found = []
    for key in sorted({*keys, *(record.service for record in records)}):
        namespace, _, name = key.partition("/")
        found += [
            LiveService(key, one.services.get(namespace, name), one.leases.read(namespace, name), one.server)
            for one in clusters
        ]
    for record in records:
        _check_asked(record, found, gone, [one.server for one in clusters])
    return found


def _check_asked(record: Record, found: Sequence[LiveService], gone: Collection[str], asked: Sequence[str]) -> None:
    """Nothing, when the cluster that the release went to is one of those asked, or the release touched none."""
    uid, server = (record.cluster or {}).get("lease"), (record.cluster or {}).get("server")
    if uid is None and not (record.canary or record.traffic):
        return
    here = [one for one in found if one.key == record.service]
    known = {one.lease.uid for one in here if one.lease} if uid else {one.key for one in here if one.lease or one.live}
    if known & {uid, record.service} or {uid, record.service} & set(gone):
        return
    where = f"at {server}, with Lease {uid}" if uid else "by an edition that did not note the cluster"
    raise CanaryLost(
        f"{record.release} released {record.service} {where}, and {', '.join(asked)} knows nothing of it: another "
        "cluster may serve these versions, so nothing is removed. --cluster KUBECONFIG asks that one, too; when it is "
        f"gone for good, --gone {uid or record.service} says so"
    )


def plan(
    store: Store,
    model: str,
    keep: Keep,
    services: Sequence[LiveService],
    *,
    builds_older_than: timedelta,
    now: datetime,
) -> Pruning:
    """What of the model's versions goes and what stays, each with its reasons. Reads; removes nothing.

    Raises:
        VersionDamaged: a decision record cannot be read, and may name any version.
        CanaryLost: a service names a revision whose version nobody knows.
        ServiceBusy: a release is about to choose its version.
    """
    uses = needed(_records(store), services, younger_than=timedelta(days=keep.days), now=now)
    everyone = list(store.versions())
    mine = [version for version in everyone if version.metadata.get("model", model) == model]
    keeps: dict[str, list[str]] = {}
    removes: dict[str, str] = {}
    for number, version in enumerate(mine, start=1):
        why = list(uses.of.get(version.name, []))
        age = now - version.time
        if number <= keep.versions:
            why.append(f"one of the newest {keep.versions}")
        if age < timedelta(days=keep.days):
            why.append(f"{age.days} days old, of {keep.days}")
        if why:
            keeps[version.name] = why
        else:
            removes[version.name] = f"{age.days} days old, older than the newest {keep.versions}, and nothing names it"
    size = sum(_size(version) for version in mine if version.name in removes)
    stale = _stale_builds(store, now - builds_older_than)
    stay = [version for version in everyone if version.name not in removes]
    answers = _answers_of_nobody(store, stay, now - builds_older_than)
    size += sum(stale.values()) + sum(answers.values())
    # One that has its record still is a version like the others, and may have been released since.
    whole = {version.name for version in everyone}
    rest = [name for name in store.half_removed() if name not in whole]
    return Pruning(keeps, removes, rest, stale, answers, size)


def needed(
    records: Iterable[Record], services: Sequence[LiveService], *, younger_than: timedelta, now: datetime
) -> Uses:
    """Which versions services, leases and records name. Raises as `plan`."""
    uses = Uses()
    revisions = [Revisions() for _ in services]
    recent: list[Record] = []
    for record in records:
        for service, its in zip(services, revisions, strict=True):
            if record.service == service.key:
                its.put_record(record)
        began = _moment(record.started)
        if record.outcome is None and record.version is None and now - began < _CHOOSING:
            raise ServiceBusy(f"{record.release} is about to choose its version; run this again when it has ended")
        if record.outcome is None or now - began < younger_than:
            recent.append(record)
    for service, its in zip(services, revisions, strict=True):
        _of_service(service, its, uses)
    for record in recent:
        why = f"in the record of {record.release}" + ("" if record.outcome else ", which has not ended")
        uses.add(record.version, why)
        uses.add(version_of((record.baseline or {}).get("storage_uri")), why)
    return uses


def apply(store: Store, plan: Pruning, tell: Callable[[str], None]) -> None:
    """Removes what the plan says, one version after the other. Whoever calls holds the leases of all services
    (`holding`) and made the plan under them. Cut off and run again, the rest is removed."""
    for version in plan.rest:
        store.discard(version, "its removal was cut off", resume=True)
        tell(f"the rest of {version} is removed")
    for version, why in plan.removes.items():
        store.discard(version, why)
        tell(f"{version} is removed")
    for folder in plan.builds:
        # Without its record a stash is none; then its files.
        keys = [key for key, _, _ in store.listing(f"{BUILDS}{folder}/")]
        store.remove(key for key in keys if key.endswith("/stash.json"))
        store.remove(keys)
        tell(f"{BUILDS}{folder}/ is removed")
    if plan.answers:
        store.remove(plan.answers)
        tell(f"{len(plan.answers)} objects of {EVALUATIONS} are removed")


@contextmanager
def holding(leases: Leases, keys: Iterable[str], owner: Owner) -> Iterator[None]:
    """Holds the leases of all these services: meanwhile no release claims one, and so none stages a version.

    Raises `ServiceBusy` where one is held by a release, or frozen; nothing is held then.
    """
    from model_release.cluster.lease import Held

    held: list[tuple[str, str]] = []
    try:
        for key in sorted(set(keys)):
            namespace, _, name = key.partition("/")
            answer = leases.acquire(namespace, name, owner)
            if isinstance(answer, Held):
                raise ServiceBusy(f"{answer}; nothing is removed meanwhile")
            held.append((namespace, name))
        yield
    finally:
        for namespace, name in held:
            leases.give_free(namespace, name, owner)


def _of_service(service: LiveService, revisions: Revisions, uses: Uses) -> None:
    live = service.live
    revisions.put_lease(service.lease)
    for baseline in baselines(service.lease):
        uses.add(version_of(baseline.storage_uri), f"a baseline in the lease of {service.key}")
    release = service.lease.release if service.lease else None
    named: list[str | None] = []
    while release is not None:
        named.append(release.canary)
        release = release.inherited
    if live is not None:
        revisions.put_spec(live)
        uses.add(version_of(live.storage_uri), f"in the spec of {service.key}")
        named += [*live.traffic, live.rolled_out, live.previous_rolled_out, live.latest_ready, live.latest_created]
    if strangers := unknown(revisions, named):
        raise CanaryLost(
            f"{service.key} has {', '.join(strangers)}, and no record says of which version; "
            "nothing is removed while one of them may be needed"
        )
    for revision in dict.fromkeys(named):
        percent = (live.serving if live else {}).get(str(revision), 0)
        what = f"has {percent} % of {service.key}" if percent else f"is a revision of {service.key}"
        for version in revisions.known.get(str(revision), []):
            uses.add(version, f"{what} ({revision})")


def _records(store: Store) -> Iterator[Record]:
    for record in History(store).records():
        if isinstance(record, VersionDamaged):
            raise VersionDamaged(f"{record}; it may name any version, so nothing is removed")
        yield record


def _stale_builds(store: Store, before: datetime) -> dict[str, int]:
    """Folders below builds/ that nothing was written to since, with their bytes."""
    newest: dict[str, datetime] = {}
    size: dict[str, int] = {}
    for key, length, written in store.listing(BUILDS):
        folder = key.removeprefix(BUILDS).partition("/")[0]
        newest[folder] = max(newest.get(folder, written), written)
        size[folder] = size.get(folder, 0) + length
    return {folder: size[folder] for folder, written in sorted(newest.items()) if written < before}


def _answers_of_nobody(store: Store, versions: Iterable[Version], before: datetime) -> dict[str, int]:
    """What archives answered to labelled images (`build.evaluation.answers` names it by the archive's SHA-256), of
    none of these versions and not of a build that may yet become one. They can be asked again at any time."""
    known = {
        about["sha256"][:16]
        for version in versions
        for name, about in version.files.items()
        if name.startswith("model-store/")
    }
    return {
        key: length
        for key, length, written in store.listing(EVALUATIONS)
        if written < before and key.removeprefix(EVALUATIONS).partition("-")[0] not in known
    }


def _size(version: Version) -> int:
    return sum(int(about["size"]) for about in version.files.values())


def _moment(time: str) -> datetime:
    moment = datetime.fromisoformat(time)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
