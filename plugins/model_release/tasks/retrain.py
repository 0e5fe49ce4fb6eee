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

from airflow.sdk import DAG, BaseOperator

from model_release.spec import ModelSpec
from model_release.tasks.assets import candidate_asset
from model_release.tasks.base import RETRIES, documented
from model_release.tasks.train import Offer, Train, trainable

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
