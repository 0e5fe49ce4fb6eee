"""The lease of a service: one release at a time, in line without a worker, and what was there before.

The next tasks, in `serve`, and whoever cleans up after them find all that they have to know in it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from model_release.errors import ServiceBusy
from model_release.tasks import notify, service
from model_release.tasks.base import ReleaseOperator, telling
from model_release.tasks.run import Run
from model_release.tasks.service import ReleasedService
from model_release.tasks.triggers import SLACK, LeaseTrigger, run_is_over


class ClaimService(ReleaseOperator):
    """Takes the service's lease for this run, waits in line for it where it must, and records the baseline before
    anything is touched. What an earlier run that is over left behind is settled first.

    Run again, it has the lease already and keeps the baseline that it recorded.
    """

    def __init__(self, *, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def release(self, context: Any, run: Run) -> Any:
        if not run.moves_traffic:
            raise AirflowSkipException("this run builds and publishes; it was not told to move traffic")
        return self._claim(context, run)

    def in_line(self, context: Any, event: dict[str, Any]) -> Any:
        """The lease may be free now: looked at again, by the same way."""
        with telling(self, context):
            return self._claim(context, Run.of(context, self.spec), deadline=datetime.fromisoformat(event["deadline"]))

    def _claim(self, context: Any, run: Run, *, deadline: datetime | None = None) -> dict[str, Any]:
        from model_release.cluster.lease import Held

        released = ReleasedService(self.spec, run)
        lease = released.leases.acquire(released.namespace, released.name, released.owner, run.release)
        if isinstance(lease, Held) and lease.by and not lease.frozen and run_is_over(lease.by):
            self.log.warning("%s; that run is over, and its lease passes on", lease)
            lease = released.leases.acquire(
                released.namespace, released.name, released.owner, run.release, over=lease.by
            )
        if isinstance(lease, Held):
            if lease.frozen is not None:
                raise ServiceBusy(str(lease))
            self._wait(str(lease), deadline or datetime.now(UTC) + self.spec.rollout.wait_for_lease)
        self._settle_inherited(released)
        return self._record_baseline(context, released)

    def _wait(self, why: str, deadline: datetime) -> NoReturn:
        left = deadline - datetime.now(UTC)
        if left <= timedelta(0):
            raise ServiceBusy(why)
        self.log.info("%s", why)
        raise TaskDeferred(
            trigger=LeaseTrigger(
                namespace=self.spec.service.namespace, name=self.spec.service.name, deadline=deadline.isoformat()
            ),
            method_name=self.in_line.__name__,
            timeout=left + SLACK,
        )

    def _settle_inherited(self, released: ReleasedService) -> None:
        now = released.claim()
        if now.inherited is not None and now.left.baseline is not None:
            sentence = released.settle(now.left, self.log.info)
            self.log.info("Left by %s and settled: %s", now.inherited.owner.run_id, sentence)
        if now.inherited is not None:
            released.note(inherited=None, barred=())

    def _record_baseline(self, context: Any, released: ReleasedService) -> dict[str, Any]:
        from model_release.cluster.rollout import baseline_of, plan_change

        version = service.published(context)
        wanted = released.wanted(self.root, version["uri"])
        live = released.live()
        lease, baseline = released.leases.read(released.namespace, released.name), released.claim().baseline
        if baseline is None:
            plan_change(live, wanted)  # refuses, before anything is recorded, what can never be released
            baseline = baseline_of(live, wanted, lease.known if lease else None)
            released.note(baseline=baseline, spec=self.spec.model_dump_json())
        revision = baseline.revision

        def begin(record: Any) -> None:
            record.version = version["version"]
            record.baseline = service.recorded(baseline)
            record.cluster = {"server": released.server, "lease": lease.uid if lease else None}

        released.record(begin)
        told = f"to be released on {self.spec.service.key}, beside {revision or 'nothing: a first deployment'}."
        notify.tell(self.spec, released.run, notify.STARTED, told)
        self.log.info("%s is claimed; baseline: %s", self.spec.service.key, revision or "none, a first deployment")
        return {"baseline": revision}
