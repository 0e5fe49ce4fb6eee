"""`retrain_<model>`: trains a candidate and offers it, which starts `release_<model>`.

```
train ─► offer
```

`train` leaves a candidate in the model's source, named by the run's own moment: a retry, or a run that is cleared,
finds a finished candidate and does not train again. `offer` says so to Airflow, as an event of the model's asset.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator

from model_release.errors import SpecError, TrainingFailed
from model_release.spec import ModelSpec, Training
from model_release.tasks import connections
from model_release.tasks.assets import candidate_asset
from model_release.tasks.base import RETRIES, documented, telling

if TYPE_CHECKING:
    from model_release.build.training import Trained

# All but backfills: what is trained today is no candidate of an earlier date.
_RUN_TYPES = ("scheduled", "manual", "operator_triggered", "asset_materialization")


def retrain_dag(spec: ModelSpec, project: Path) -> DAG:
    """`retrain_<model>`, for a model file with `training`. `project` is the folder that holds dags/ and include/."""
    training = trainable(spec)
    how = training.run or f"image {training.image}"
    with DAG(
        f"retrain_{spec.model}",
        description=f"Trains a candidate of {spec.model} by {how} into {spec.source}",
        doc_md=f"### {spec.model}\n\n```json\n{training.model_dump_json(indent=2, exclude_none=True)}\n```\n",
        schedule=training.schedule,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        allowed_run_types=_RUN_TYPES,
        default_args=RETRIES,
        tags=["model-release", spec.model],
    ) as dag:
        train: BaseOperator
        if training.image:
            # Imports kubernetes: only models that train in a pod pay for it when DAGs are parsed.
            from model_release.tasks.training_pod import TrainInPod

            train = TrainInPod(task_id="train", spec=spec, service_account=training.service_account)
        else:
            train = Train(task_id="train", spec=spec, root=project)
        train >> Offer(task_id="offer", spec=spec, root=project, outlets=[candidate_asset(spec, project)])
    return documented(dag)


def trainable(spec: ModelSpec) -> Training:
    """The model's training; `SpecError` where there is none."""
    training = spec.training
    if training is None:
        raise SpecError(f"model {spec.model}: its file has no training")
    return training


def sources(spec: ModelSpec) -> dict[str, str]:
    """The model's source as `build` takes it."""
    return spec.source.place


def candidate_of(context: Any) -> str:
    """The name of the run's candidate: the end of its data interval where the schedule made it, else the moment that it
    was asked for: a run by hand may bear the interval of the schedule's last one, and would find that one's candidate.
    Not the wall clock: all tries of a run make one candidate."""
    from model_release.build.training import candidate_name

    dag_run = context["dag_run"]
    end = dag_run.data_interval_end if dag_run.run_type in ("scheduled", "backfill") else None
    return candidate_name(end or dag_run.run_after)


class Train(BaseOperator):
    """Trains by the callable `training.run`, in a process of its own on this worker.

    Run again, it finds the finished candidate; a half-made one was never visible. A refusal of the training itself (it
    raised, took too long, left no checkpoint) is not tried again; a worker that was lost is.
    """

    ui_color = "#e6f4ea"

    def __init__(self, *, spec: ModelSpec, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.root = root

    def execute(self, context: Any) -> dict[str, Any]:
        from model_release.build import training

        wanted = trainable(self.spec)
        with telling(self, context):
            made = training.train(
                str(wanted.run),
                sources(self.spec),
                candidate_of(context),
                arguments=wanted.arguments,
                timeout=wanted.timeout.total_seconds(),
                base=self.root,
                path=[self.root / "include", self.root / "plugins"],
                reach=connections.reach,
                log=self.log.info,
            )
        return event_of(made)

    def on_kill(self) -> None:
        # Airflow calls this from its handler of SIGTERM and kills the process five seconds later. Raised here, it ends
        # the wait for the training, and with that the training and what it started. None of our own exceptions: a
        # worker that shuts down is no fault of the training, and its task is tried again elsewhere.
        raise InterruptedError("training was stopped with its task")


class Offer(BaseOperator):
    """Emits the event of the model's asset for the candidate of this run; for an image, first checks what it wrote and
    makes that a candidate.

    Run again, it says the same of the same candidate; a release of it finds nothing new.
    """

    ui_color = "#e6f4ea"

    def __init__(self, *, spec: ModelSpec, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.root = root

    def execute(self, context: Any) -> dict[str, Any]:
        with telling(self, context):
            event = event_of(self._candidate(context))
        context["outlet_events"][candidate_asset(self.spec)].extra = event
        return event

    def _candidate(self, context: Any) -> Trained:
        from model_release.build import training

        wanted, candidate = trainable(self.spec), candidate_of(context)
        if wanted.image:
            return training.finish(
                wanted.image,
                sources(self.spec),
                candidate,
                arguments=wanted.arguments,
                seconds=float(context["ti"].xcom_pull(task_ids="train", key="seconds") or 0),
                reach=connections.reach,
                log=self.log.info,
            )
        found = training.find(sources(self.spec), candidate, base=self.root, reach=connections.reach)
        if found is None:
            raise TrainingFailed(f"{self.spec.source} has no finished candidate {candidate}; clear train to train it")
        return found


def event_of(made: Trained) -> dict[str, Any]:
    """What the asset's event says: see `assets.candidate_asset`."""
    return {
        "candidate": made.candidate,
        "origin": made.origin,
        "digest": made.fingerprint,
        "metrics": made.metrics,
        "duration": made.seconds,
    }
