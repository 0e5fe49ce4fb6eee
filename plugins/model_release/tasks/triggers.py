"""The three waits of a release, without a worker: for the lease, for the new revision, for the evidence.

They run in the triggerer. The first two only read; the third also moves the canary's traffic (`release.drive`). Each
may be started twice, moved to another triggerer or stopped at any moment, because all that it knows comes with it or
from the cluster and Prometheus. None has an `on_kill`: Airflow
3.3 calls that for triggers that merely moved (docs/facts.md#a-trigger-that-moved-is-killed). The clients are
synchronous and short; each call has a thread of its own, so that one triggerer waits for a thousand releases, and what
hangs for one blinds no other.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow.triggers.base import BaseTrigger, TriggerEvent

from model_release.errors import ClusterUnavailable, ReleaseError
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, telemetry
from model_release.tasks.aside import aside
from model_release.tasks.run import Run, installation

if TYPE_CHECKING:
    from model_release.cluster.release import Owner, Release
    from model_release.store.store import Store


# How much later than its trigger's own deadline Airflow ends a wait: the trigger says why it ended, Airflow does not.
SLACK = timedelta(minutes=1)
BACK = "Roll back"  # what a question is closed with, when nobody answered it


class _ReleaseTrigger(BaseTrigger):
    """Serializes exactly what it was given. `deadline` is a moment, so that a trigger that moved does not wait anew."""

    # Seconds before the first event. Airflow 3.3 takes a task for lost that is resumed before its scheduler heard of
    # the deferral (apache/airflow#72716). LocalExecutor may tell that five seconds late: a process that was forked
    # meanwhile keeps the finished one's sockets open.
    HEARD = 7.0

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given
        self.deadline = datetime.fromisoformat(given["deadline"])

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", self.given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        clock = asyncio.get_running_loop().time
        heard = clock() + self.HEARD
        async with aclosing(self.wait()) as events:
            async for event in events:
                await asyncio.sleep(heard - clock())
                yield event

    def wait(self) -> AsyncGenerator[TriggerEvent]:
        """Waits, and gives one event."""
        raise NotImplementedError

    @property
    def late(self) -> bool:
        return datetime.now(UTC) >= self.deadline


class LeaseTrigger(_ReleaseTrigger):
    """Waits until a service's lease is free, or its holder's run is over.

    Given: namespace, name, deadline. Event: {"late": bool, "deadline"}; whoever gets it looks again before taking
    anything, and where another was faster goes on waiting until the same deadline.
    """

    POLL = 5.0

    async def wait(self) -> AsyncGenerator[TriggerEvent]:
        from model_release.cluster.leases import Leases

        leases = Leases(await aside(connections.cluster, "triggerer"))
        told = ""
        while not self.late:
            try:
                lease = await aside(leases.read, self.given["namespace"], self.given["name"])
                release = lease.release if lease else None
                free = lease is None or lease.holder is None
                if free or (release is not None and await aside(run_is_over, release.owner)):
                    yield TriggerEvent({"late": False, "deadline": self.given["deadline"]})
                    return
                line = f"In line behind {_holder(release)}"
            except ClusterUnavailable as error:
                line = f"The cluster does not answer: {error}"
            if line != told:
                self.log.info(line)
                told = line
            await asyncio.sleep(self.POLL)
        yield TriggerEvent({"late": True, "deadline": self.given["deadline"]})


class RevisionTrigger(_ReleaseTrigger):
    """Waits until the staged revision is ready at 0 %, or can no longer become so.

    Given: wanted (the manifest), baseline, template (the digest of what was staged), deadline. Event: {"state",
    "sentence"} of `cluster.progress`, and the deadline for who waits again.
    """

    POLL = 1.0

    async def wait(self) -> AsyncGenerator[TriggerEvent]:
        from model_release.cluster.change import Baseline
        from model_release.cluster.progress import Patience, Progress, State
        from model_release.cluster.rollout import assess_staged
        from model_release.cluster.services import InferenceServices

        services = InferenceServices(await aside(connections.cluster, "triggerer"))
        wanted, template = self.given["wanted"], self.given["template"]
        baseline = Baseline.from_dict(self.given["baseline"])
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        clock, patience = asyncio.get_running_loop().time, Patience()
        progress = Progress(State.WAITING, "nothing seen yet")
        while True:
            told = progress.sentence
            try:
                live = await aside(services.get, namespace, name)
                progress = patience.judge(assess_staged(live, wanted, baseline, template), clock())
            except ClusterUnavailable as error:
                progress = Progress(State.WAITING, f"the cluster does not answer: {error}")
            if progress.sentence != told:
                self.log.info(progress.sentence)
            if progress.state.over or self.late:
                event = {"state": progress.state.value, "sentence": progress.sentence}
                yield TriggerEvent({**event, "deadline": self.given["deadline"]})
                return
            await asyncio.sleep(self.POLL)


class CanaryTrigger(_ReleaseTrigger):
    """Drives the canary: opens it, looks, gives it more, promotes it, or takes its traffic back in the same breath in
    which the evidence turns. No worker is needed for any of it, nor the scheduler; the task writes the report.

    Given: spec (JSON, as the release began with it), canary, run, deadline, past (JSON: what stable did before).
    Event: what `driving.outcome` says; or {"error", "sentence"}. With `question`, the id of a task that asks a person
    meanwhile: the answer, as Airflow gives it; where the drive ends first, the question is withdrawn.
    """

    # Seconds that a look may take, less than the lease's duration: one that hangs is given up, and another hand looks.
    # What the first one may still do does no harm (`release.drive`).
    LOOK = 45.0
    _store: Store | None = None

    async def wait(self) -> AsyncGenerator[TriggerEvent]:
        from model_release.cluster.change import Canary
        from model_release.judging import Past
        from model_release.tasks import driving

        question = Question(self.given["question"]) if "question" in self.given else None
        spec, run = ModelSpec.model_validate_json(self.given["spec"]), Run(**self.given["run"])
        canary = Canary.from_dict(self.given["canary"])
        # A trigger of an edition that read none has none.
        before = Past.from_dict(json.loads(self.given["past"])) if "past" in self.given else None
        try:
            drive = await aside(driving.drive, spec, canary, run, "triggerer", before)
            showing: asyncio.Task[None] | None = None
            while drive.done is None:
                if question is not None and (answer := await question.answer()):
                    # With what the worker's judge needs: while it reads that anew, nobody looks.
                    yield TriggerEvent(answer | {"past": before.to_dict() if before else None})
                    return
                try:
                    async with asyncio.timeout(self.LOOK):
                        lines = await aside(drive.look)
                except TimeoutError:
                    self.log.info("A look has taken %g s and is given up; another hand looks", self.LOOK)
                    drive = await aside(driving.drive, spec, canary, run, "triggerer", before)
                    continue
                for line in lines:
                    self.log.info(line)
                if lines and drive.watches:
                    await aside(telemetry.looked, next(reversed(drive.watches.values())))
                # Beside the drive, never in its way: a store that hangs must not keep a bad canary open.
                if lines and (showing is None or showing.done()):
                    showing = asyncio.create_task(self._show(spec, run, driving.counted(drive)))
                if drive.done is None:
                    await asyncio.sleep(drive.pause)
            if question is not None:
                await question.withdraw()
            yield TriggerEvent(driving.outcome(drive))
        except ReleaseError as error:
            yield TriggerEvent({"error": type(error).__name__, "sentence": str(error)})

    async def _show(self, spec: ModelSpec, run: Run, found: dict[str, Any]) -> None:
        """Puts what was counted so far into the record, for those who look. The task records all of it when the drive
        is over, so nothing depends on this."""
        from model_release.tasks import driving

        try:
            if self._store is None:  # looked up here: to sign in may hang as well
                self._store = await aside(connections.store, spec.store)
            await aside(records.change, spec, run, lambda record: driving.put(record, spec, found), self._store)
        except ReleaseError as error:
            self.log.info("Not shown in the record meanwhile: %s", error)


class Question:
    """What a deferred task asks a person, by the task's id.

    Airflow resumes a deferred task when it is answered; an answer that came before it was deferred resumes nobody, and
    is found here.
    """

    def __init__(self, task: str) -> None:
        self._task = UUID(task)

    async def answer(self) -> dict[str, Any] | None:
        """The answer in the form in which Airflow gives it; None while there is none."""
        from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail

        found = await aside(get_hitl_detail_content_detail, ti_id=self._task)
        if not found.response_received or not found.chosen_options:
            return None
        who = found.responded_by_user
        return {
            "chosen_options": list(found.chosen_options),
            "params_input": found.params_input or {},
            "responded_by_user": {"id": who.id, "name": who.name} if who else None,
        }

    async def withdraw(self) -> None:
        """Closes it, so that nobody answers what is decided. Somebody who answers at this moment is not heard: evidence
        and silence stand."""
        from airflow.sdk.exceptions import AirflowRuntimeError
        from airflow.sdk.execution_time.hitl import update_hitl_detail_response

        try:
            await aside(update_hitl_detail_response, ti_id=self._task, chosen_options=[BACK], params_input={})
        except AirflowRuntimeError as error:
            logging.getLogger(__name__).info("The question could not be withdrawn: %s", error)


def _holder(release: Release | None) -> str:
    if release is None:
        return "somebody who is no release of this project"
    return f"{release.owner.dag_id} {release.owner.run_id} ({release.stage}): {release.owner.url}"


def run_is_over(owner: Owner) -> bool:
    """Whether the lease's holder has ended, or was deleted, by the word of this Airflow. A run of another Airflow is
    never over to us. Works in tasks and, in a thread, in triggers."""
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    if owner.installation != installation():
        return False
    try:
        return RuntimeTaskInstance.get_dagrun_state(owner.dag_id, owner.run_id) in ("success", "failed")
    except AirflowRuntimeError as error:
        if (error.error.detail or {}).get("status_code") == 404:
            return True
        raise
