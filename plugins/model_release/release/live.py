"""Which versions a service serves now, from the cluster's own words.

KServe's status names revisions, not versions. A revision's version is known from the decision records, from the
service's lease, and, for a service at rest, from its spec.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model_release.release.index import History, version_of

if TYPE_CHECKING:
    from model_release.cluster.inference_service import InferenceService
    from model_release.cluster.lease import Lease
    from model_release.cluster.release import Release
    from model_release.judging.record import Record

_RECORDS = 30  # a revision with traffic is of one of the last few releases


@dataclass
class Revisions:
    """Which version each revision of one service is, as far as it is known. A service that was deleted and made
    anew begins its revisions' names again, so that one name may stand for several; the last one put in is first."""

    known: dict[str, list[str]] = field(default_factory=dict)

    def put(self, revision: str | None, version: str | None) -> None:
        if revision and version and version not in self.known.get(revision, []):
            self.known.setdefault(revision, []).append(version)

    def put_record(self, record: Record) -> None:
        """What the record says of its canary and of its baseline."""
        self.put((record.canary or {}).get("revision"), record.version)
        baseline = record.baseline or {}
        self.put(baseline.get("revision"), version_of(baseline.get("storage_uri")))

    def put_lease(self, lease: Lease | None) -> None:
        for baseline in baselines(lease):
            self.put(baseline.revision, version_of(baseline.storage_uri))

    def put_spec(self, live: InferenceService) -> None:
        """A service at rest has one revision, and it is the spec's. The last resort, for a service that somebody
        wrote by hand: status lags behind spec (docs/facts.md#status-lags-behind-spec), so what releases recorded comes
        before it."""
        if live.latest_created == live.latest_ready == live.rolled_out:
            self.put(live.latest_created, version_of(live.storage_uri))


def baselines(lease: Lease | None) -> list[Any]:
    """Every baseline in a lease: of the release under way, of one that it took over, and the last one known."""
    if lease is None:
        return []
    releases: list[Release] = []
    release = lease.release
    while release is not None:
        releases.append(release)
        release = release.inherited
    return [baseline for baseline in (*(release.baseline for release in releases), lease.known) if baseline is not None]


def traffic(live: InferenceService | None, lease: Lease | None, history: History, service: str) -> dict[str, int] | str:
    """{version: percent} of the service's traffic now, or why nobody knows."""
    if live is None:
        return {}
    revisions = Revisions()
    revisions.put_lease(lease)
    for entry in history.page(service=service, limit=_RECORDS).entries:
        if all(revision in revisions.known for revision in live.serving):
            break
        record = history.record(entry.release)
        if record is not None:
            revisions.put_record(record)
    revisions.put_spec(live)
    shares: dict[str, int] = {}
    for revision, percent in live.serving.items():
        if revision not in revisions.known:
            return f"no record names the version of {revision}, which has {percent} % of {service}"
        version = revisions.known[revision][0]
        shares[version] = shares.get(version, 0) + percent
    if not shares:
        return f"the status of {service} names no traffic"
    return shares


def unknown(revisions: Revisions, named: Iterable[str | None]) -> list[str]:
    """Those of the revisions whose version nobody knows."""
    return sorted({revision for revision in named if revision and revision not in revisions.known})
