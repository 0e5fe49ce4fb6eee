"""`sweep`: every few minutes, whatever a release left behind when its run could not clean up is settled.

(Airflow opens only those files of its DAG folder that have its name and the word "dag" in them.)
"""

from __future__ import annotations

from pathlib import Path

from model_release.tasks.sweep import sweep_dag

sweep = sweep_dag(Path(__file__).resolve().parents[1] / "include" / "models", schedule="*/5 * * * *")
