"""No DAG: where a model file cannot be accepted, Airflow's UI shows why, as an import error of this file.

Raised in release.py it would take the DAGs of all other models with it, and from the releases that are under way the
tasks that roll back. (Airflow opens only those files of its DAG folder that have its name and the word "dag" in them.)
"""

from __future__ import annotations

from pathlib import Path

from model_release.model_file import load_all

load_all(Path(__file__).resolve().parents[1] / "include" / "models")
