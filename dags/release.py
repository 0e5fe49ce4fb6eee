"""`release_<model>`: one DAG for each model file in include/models/.

A model file is all there is to write. What the DAG does with it is `model_release.tasks.dag.release_dag`.
(Airflow opens only those files of its DAG folder that have its name in them.)
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import get_parsing_context

from model_release.model_file import read_all
from model_release.tasks import suggestions
from model_release.tasks.dag import release_dag

PROJECT = Path(__file__).resolve().parents[1]

suggested, wanted = suggestions.known(), get_parsing_context().dag_id
for spec in read_all(PROJECT / "include" / "models")[0].values():  # model_files.py tells of the others
    dag_id = f"release_{spec.model}"
    # A task parses this file once more, for the sake of one DAG; with a thousand models the others would cost it most.
    if wanted in (None, dag_id):
        known = suggested.get(spec.model, suggestions.Suggested())
        globals()[dag_id] = release_dag(spec, PROJECT, known.versions, known.plan)
