"""The tasks of `retrain_<model>`: train a candidate, offer it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from model_release.errors import SpecError, TrainingFailed
from model_release.spec import ModelSpec, Training
from model_release.tasks import connections
from model_release.tasks.assets import candidate_asset
from model_release.tasks.base import telling

if TYPE_CHECKING:
    from model_release.build.training import Trained


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


class _Training(BaseOperator):
    """A task of one model's training. `root` is the folder that holds dags/ and include/."""

    ui_color = "#e6f4ea"

    def __init__(self, *, spec: ModelSpec, root: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.root = root


class Train(_Training):
    """Trains by the callable `training.run`, in a process of its own on this worker.

    Run again, it finds the finished candidate; a half-made one was never visible. A refusal of the training itself (it
    raised, took too long, left no checkpoint) is not tried again; a worker that was lost is.
    """

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


class Offer(_Training):
    """Emits the event of the model's asset for the candidate of this run; for an image, first checks what it wrote and
    makes that a candidate.

    Run again, it says the same of the same candidate; a release of it finds nothing new.
    """

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
