"""The emergency ways in Airflow's UI: `rollback_<model>` and `promote_<model>`, each a form with a reason and one task.

They do what `python -m model_release roll-back | promote` does, for whoever has the UI and no kubeconfig; who it was is
the user who started the run. They run beside a release that is under way, however long that one waits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from inspect import getdoc
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from model_release.cluster.release import Cause
from model_release.errors import ReleaseError
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, registry
from model_release.tasks.base import RETRIES, ReleaseOperator, documented
from model_release.tasks.proof import prover
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.cluster.change import Baseline, Prove
    from model_release.cluster.leases import Leases
    from model_release.cluster.services import InferenceServices
    from model_release.release.emergency import ByHand, Person

# As for the commands: a split takes seconds, a baseline that has to start anew takes as long as it takes.
SECONDS = 900.0


def emergency_dags(spec: ModelSpec) -> dict[str, DAG]:
    """`rollback_<model>` and `promote_<model>` by their names."""
    return {
        f"rollback_{spec.model}": _dag(
            f"rollback_{spec.model}",
            f"Takes the traffic of {spec.service.key} back to the baseline, now",
            RollBackNow(task_id="roll_back", spec=spec),
        ),
        f"promote_{spec.model}": _dag(
            f"promote_{spec.model}",
            f"Promotes the canary that is open on {spec.service.key}, in spite of the judge",
            PromoteAnyway(task_id="promote", spec=spec),
        ),
    }


def _dag(dag_id: str, description: str, task: EmergencyOperator) -> DAG:
    with DAG(
        dag_id,
        description=description,
        doc_md=getdoc(type(task)),
        schedule=None,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        params={
            "reason": Param(
                type="string",
                minLength=3,
                maxLength=1000,
                title="Reason",
                description="Why; kept with your name in the decision record.",
            )
        },
        default_args=RETRIES,
        tags=["model-release", "emergency", task.spec.model, task.spec.service.key],
    ) as dag:
        dag.add_task(task)
    return documented(dag)


class EmergencyOperator(ReleaseOperator):
    """What both have in common: hands on the cluster, and a person."""

    ui_color = "#fde8e8"

    def release(self, context: Any, run: Run) -> str:
        from model_release.cluster.leases import Leases
        from model_release.cluster.release import Owner
        from model_release.cluster.services import InferenceServices
        from model_release.release.emergency import Person

        client = connections.cluster()
        person = Person(run.who, str(run.params["reason"]), Owner(run.dag_id, run.run_id, run.url, run.installation))
        done = self.act(InferenceServices(client), Leases(client), person)
        self.log.info("%s", done.sentence)
        if done.alone:
            self.keep(run, person, done.sentence)
        return done.sentence

    def act(self, services: InferenceServices, leases: Leases, person: Person) -> ByHand:
        """Does it."""
        raise NotImplementedError

    def keep(self, run: Run, person: Person, said: str) -> None:
        """A record of its own, where the store is there to take it; what was done does not fail for a word."""
        order = person.order("roll_back", None)

        def edit(record: Any) -> None:
            if record.outcome is None:
                record.record_approval(order.when, order.who, order.kind, order.why)
                record.finish("rolled_back", f"{order} ({said})", records.now(), Cause.PERSON)

        try:
            registry.note_by_hand(self.spec, records.change(self.spec, run, edit), run.page)
        except ReleaseError as error:
            self.log.warning("Done, and not recorded: %s", error)

    def tell(self, progress: Any) -> None:
        self.log.info("%s", progress.sentence)


class RollBackNow(EmergencyOperator):
    """The traffic goes to the revision before, now: off the canary of a release that is under way, which then settles
    and ends as rolled back; or, when none is, back to what the last release found, its template with it.

    Needs the cluster and nothing else: while the store is away the baseline gets the traffic all the same, and only
    its template is not brought back into the spec; another run of this DAG does that. Run again, it finds it so.
    """

    def act(self, services: InferenceServices, leases: Leases, person: Person) -> ByHand:
        from model_release.release.emergency import roll_back_now

        place = self.spec.service.namespace, self.spec.service.name
        return roll_back_now(services, leases, *place, person, seconds=SECONDS, tell=self.tell, prove=self._prove)

    def _prove(self, baseline: Baseline) -> Prove:
        return prover(baseline.storage_uri, self.log.info)


class PromoteAnyway(EmergencyOperator):
    """The canary that is open gets all of the traffic whatever the judge says, by the release that is under way, which
    verifies it by name, bakes it, and has the name and the reason in its record. Run again, it finds it so."""

    def act(self, services: InferenceServices, leases: Leases, person: Person) -> ByHand:
        from model_release.release.emergency import ByHand, promote_anyway

        place = self.spec.service.namespace, self.spec.service.name
        return ByHand(promote_anyway(services, leases, *place, person, seconds=SECONDS, tell=self.tell))
