"""`retrain_<model>`: one DAG for each model file in include/models/ that has a `training`.

What it does is `model_release.tasks.retrain.retrain_dag`; its candidates start `release_<model>`.
(Airflow opens only those files of its DAG folder that have its name in them.)
"""

from __future__ import annotations

from pathlib import Path

from model_release.model_file import read_all
from model_release.tasks.retrain import retrain_dag

PROJECT = Path(__file__).resolve().parents[1]

for spec in read_all(PROJECT / "include" / "models")[0].values():
    if spec.training:
        globals()[f"retrain_{spec.model}"] = retrain_dag(spec, PROJECT)
