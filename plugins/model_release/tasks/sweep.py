"""What no teardown can do: settle the releases whose run is over or gone, and tell of canaries that nobody claims.

A run's `settle` never runs when the scheduler was lost, the database restored, or the run or its DAG deleted. The
lease outlives all of that, and says who held it and what was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import DAG, BaseOperator

from model_release.errors import ClusterUnavailable, NotSettled, ReleaseError, StoreUnavailable
from model_release.model_file import read_all
from model_release.release.outcome import swept
from model_release.spec import ModelSpec
from model_release.tasks import connections, notify, records, registry, telemetry
from model_release.tasks.base import RETRIES, documented, telling
from model_release.tasks.proof import prover, version_in
from model_release.tasks.run import Run, installation
from model_release.tasks.triggers import run_is_over

if TYPE_CHECKING:
    from model_release.cluster.change import Prove
    from model_release.cluster.lease import Lease
    from model_release.cluster.leases import Leases
    from model_release.cluster.release import Owner, Release

SWEEP = "sweep"
# How long a canary that was closed may wait for its own run to settle it. A run whose task instance was deleted looks
# alive for ever, and would keep the service from every later release.
LEFT = timedelta(minutes=30)
Service = tuple[str, str]  # namespace and name of an InferenceService


def sweep_dag(models: Path, schedule: str | None) -> DAG:
    """The DAG `sweep` over the services of all model files in the folder `models`.

    A file that cannot be read stops the sweep of its own service only; the sweep says so each time.
    """
    services: dict[str, list[ModelSpec]] = {}
    specs, unread = read_all(models)
    for spec in specs.values():
        services.setdefault(spec.service.key, []).append(spec)
    with DAG(
        SWEEP,
        description="Settles releases whose run is over or gone, and tells of canaries that nobody claims",
        schedule=schedule,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        default_args={**RETRIES, "retry_delay": timedelta(seconds=30)},
        tags=["model-release"],
    ) as dag:
        Sweep(task_id=SWEEP, services=list(services.values()), unread=unread)
    return documented(dag)


class _Abandoned:
    """A release whose run is over, on a lease that this sweep may write.

    Args:
        specs: the service's model files; none, when they were deleted since.
        holder: who holds the lease now: this sweep; on a frozen service still the run that is over.
    """

    def __init__(
        self, service: Service, specs: Sequence[ModelSpec], release: Release, leases: Leases, holder: Owner
    ) -> None:
        self.service, self.specs, self.release = service, specs, release
        self._leases, self._holder = leases, holder

    @property
    def storage_uri(self) -> str | None:
        """What the baseline serves."""
        return self.release.baseline.storage_uri if self.release.baseline else None

    def bar(self, revision: str) -> None:
        """The `remember` of `settle`."""
        self._leases.bar(*self.service, self._holder)(revision)
        self.release = replace(self.release, barred=(*self.release.barred, revision))

    def give_free(self) -> None:
        self._leases.give_free(*self.service, self._holder)

    def __str__(self) -> str:
        owner = self.release.owner
        return f"{_key(self.service)}: left by {owner.dag_id} {owner.run_id} ({self.release.stage})"


class Sweep(BaseOperator):
    """Reads each service's lease and live state: the services of the model files, and those that the cluster's leases
    name, whose files are gone. Nothing is touched where the holder's run is alive (but for a canary that was closed
    half an hour ago, and that nobody settles), or is a run of another Airflow.

    What was left is taken over first, so that no release begins on it meanwhile, then settled, its decision record
    finished, and the lease given free. All canaries go to 0 % before the first is cleaned up. Run again, killed or
    not, it goes on: a lease that a sweep died with is one more whose run is over.

    What a registry that was away has not been told yet is told.
    Returns the lines that it logged about services that are not at rest. One that cannot be settled fails the run, and
    the next sweep tries again.

    Args:
        services: the model files of each service; they share it.
        unread: what is wrong with those that could not be read.
    """

    ui_color = "#e8f0fe"

    def __init__(self, *, services: Sequence[Sequence[ModelSpec]], unread: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.services, self.unread = services, unread

    def execute(self, context: Any) -> list[str]:
        with telling(self, context):
            return self.sweep(context["dag_run"])

    def sweep(self, dag_run: Any) -> list[str]:
        from model_release.cluster.leases import Leases
        from model_release.cluster.release import Owner
        from model_release.cluster.services import InferenceServices

        base, run_id = installation(), str(dag_run.run_id)
        me = Owner(SWEEP, run_id, f"{base}/dags/{SWEEP}/runs/{quote(run_id)}", base)
        client = connections.cluster("sweep")
        self._isvcs, self._leases = InferenceServices(client), Leases(client)
        lines = [f"Not swept: {trouble}" for trouble in self.unread]
        troubles: list[ReleaseError] = []
        abandoned: list[_Abandoned] = []
        services = self._all_services(lines)
        for service, specs in services.items():
            try:
                found = self._look(service, specs, me)
            except ReleaseError as error:
                troubles.append(error)
                continue
            if isinstance(found, _Abandoned):
                abandoned.append(found)
            elif found is not None:
                lines.append(found)
        for one in abandoned:
            self._first_step(one)
        for one in abandoned:
            try:
                lines.append(self._settle(one))
            except ReleaseError as error:
                troubles.append(error)
        self._tell_registries()
        for line in lines:
            self.log.warning("%s", line)
        if troubles:
            raise _worst(troubles)
        if not lines:
            self.log.info("%d services: nothing left behind", len(services))
        return lines

    def _all_services(self, lines: list[str]) -> dict[Service, Sequence[ModelSpec]]:
        """Every service with its model files: none, where only a lease is left of it."""
        found: dict[Service, Sequence[ModelSpec]] = {
            (specs[0].service.namespace, specs[0].service.name): specs for specs in self.services
        }
        try:
            leases = self._leases.all({namespace for namespace, _ in found})
        except ReleaseError as error:
            lines.append(f"Not swept: services whose model file is gone: {error}")
            leases = []
        for lease in leases:
            found.setdefault((lease.namespace, lease.service), ())
        return found

    def _tell_registries(self) -> None:
        """What a registry that was away has not been told yet."""
        for spec in (spec for specs in self.services for spec in specs):
            try:
                registry.write(spec)
            except ReleaseError as error:
                self.log.warning("%s: whether its registry was told is not known: %s", spec.model, error)

    def _look(self, service: Service, specs: Sequence[ModelSpec], me: Owner) -> _Abandoned | str | None:
        """What was left and is taken over now, or a line for what only a person can judge."""
        lease = self._leases.read(*service)
        if lease is None or lease.holder is None:
            return self._unclaimed(*service)
        release = lease.release
        if release is None:
            return f"{_key(service)}: its lease is held by {lease.holder}, which is no release; since {lease.since}"
        owner = release.owner
        if owner.installation != me.installation:
            return (
                f"{_key(service)}: is being released by another Airflow, {owner.dag_id} {owner.run_id} "
                f"({release.stage}, since {lease.since}): {owner.url}"
            )
        if owner.identity != me.identity and not run_is_over(owner) and not _is_left(lease, release):
            return None
        return self._take_over(specs, lease, release, me)

    def _take_over(self, specs: Sequence[ModelSpec], lease: Lease, release: Release, me: Owner) -> _Abandoned | None:
        from model_release.cluster.lease import Held

        service = (lease.namespace, lease.service)
        if lease.frozen is not None:
            # Nobody can take a frozen service, so the lease may stay with the run that is over.
            return _Abandoned(service, specs, release.left, self._leases, release.owner)
        taken = self._leases.acquire(lease.namespace, lease.service, me, over=release.owner)
        if isinstance(taken, Held):
            self.log.info("%s", taken)
            return None
        return _Abandoned(service, specs, release.left, self._leases, me)

    def _unclaimed(self, namespace: str, name: str) -> str | None:
        live = self._isvcs.get(namespace, name)
        if live is None or not live.is_split or not live.canary_percent:
            return None
        return (
            f"{live.key}: {live.latest_created} takes {live.canary_percent} % and no release claims it"
            f"{live.other_writer()}; promote it or take it back by hand"
        )

    def _first_step(self, one: _Abandoned) -> None:
        """The canary's traffic goes at once, before any waiting begins. Trouble is `_settle`'s to tell."""
        from model_release.cluster.settle import settle_step

        if one.release.baseline is None:
            return
        try:
            settle_step(self._isvcs, one.release, one.bar, self._prover(one))
        except ReleaseError as error:
            self.log.warning("%s: %s", one, error)

    def _settle(self, one: _Abandoned) -> str:
        from model_release.cluster.settle import settle

        sentence = "nothing was touched"
        if one.release.baseline is not None:
            self.log.warning("%s", one)
            sentence = settle(
                self._isvcs,
                one.release,
                one.bar,
                prove=self._prover(one),
                tell=lambda progress: self.log.info("%s", progress.sentence),
            )
        line = f"{one}: {sentence}"
        self._finish_record(one, line)
        one.give_free()
        return line

    def _prover(self, one: _Abandoned) -> Prove:
        return prover(one.storage_uri, self.log.info)

    def _finish_record(self, one: _Abandoned, line: str) -> None:
        """The record of a release that ended without a word says how: it stands where it was promoted, else failed."""
        release, live, order = one.release, self._isvcs.get(*one.service), one.release.order
        if not release.record:
            return
        stands = release.promoted and live is not None and live.serving == {release.canary: 100}
        outcome = swept(release, stands, line)

        def finish(record: Any) -> None:
            record.record_traffic(records.now(), SWEEP, 100 if stands else 0, dict(live.serving) if live else {})
            if order is not None:
                record.record_approval(order.when, order.who, order.kind, order.why)
            if record.outcome != outcome.kind:
                record.finish(outcome.kind, outcome.sentence, records.now(), outcome.cause)

        spec = next((spec for spec in one.specs if f"release_{spec.model}" == release.owner.dag_id), None)
        if spec is not None:
            owner = release.owner
            run = Run(owner.dag_id, owner.run_id, owner.url, owner.installation, release.record, "canary", {})
            record = records.change(spec, run, finish)
            if record.reason == outcome.sentence:
                telemetry.released(record)
            notify.tell(spec, run, notify.SWEPT, outcome.sentence)
            registry.note(spec, record, run.page)
        elif (found := version_in(one.storage_uri)) is not None:
            _amend(found[0], release.record, finish)


def _is_left(lease: Lease, release: Release) -> bool:
    """Whether a canary was closed, and nobody came to settle it since."""
    if release.closed is None or not lease.renewed:
        return False
    return datetime.now(UTC) - datetime.fromisoformat(lease.renewed) >= LEFT


def _amend(store: str, release: str, edit: Callable[[Any], None]) -> None:
    """Changes a record whose model file is gone, where the store of the service's versions has it."""
    from model_release.release.index import parsed

    where, key = connections.store(store), f"releases/{release}.json"
    kept, tag = where.read_json(key)
    if kept is not None:
        record = parsed(kept, release, where.uri)
        edit(record)
        where.write_json(key, record.to_dict(), if_match=tag)


def _key(service: Service) -> str:
    return "/".join(service)


def _worst(troubles: Sequence[ReleaseError]) -> ReleaseError:
    """One error for all: an incident where there is one; tried again only if each may pass by itself."""
    if len(troubles) == 1:
        return troubles[0]
    text = "; ".join(str(trouble) for trouble in troubles)
    passing = all(isinstance(trouble, ClusterUnavailable | StoreUnavailable) for trouble in troubles)
    return ClusterUnavailable(text) if passing else NotSettled(text)
