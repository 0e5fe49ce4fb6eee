"""What every process of Airflow pays for the plugin: next to nothing, until somebody opens the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
ASKED = """
import json, sys
from airflow.plugins_manager import AirflowPlugin
before = set(sys.modules)
import release_plugin
found = sorted(set(sys.modules) - before)
plugin = release_plugin.ReleasePlugin
print(json.dumps({"modules": found, "views": plugin.external_views, "prefix": plugin.fastapi_apps[0]["url_prefix"]}))
"""


def loaded(home: Path, **settings: str) -> Any:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": str(home), "PYTHONPATH": str(PLUGINS), **settings}
    done = subprocess.run([sys.executable, "-c", ASKED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.stack
def test_loading_it_imports_nothing_of_the_page_and_names_its_views(tmp_path: Path) -> None:
    found = loaded(tmp_path, AIRFLOW__API__BASE_URL="https://company.test/airflow")
    heavy = ("fastapi", "jinja2", "kubernetes", "boto3", "numpy", "torch", "model_release.web", "model_release.judging")
    assert [name for name in found["modules"] if name.startswith(heavy)] == []
    assert found["prefix"] == "/model-releases"
    views = {view["destination"]: view for view in found["views"]}
    assert views["nav"]["href"] == "/airflow/model-releases/", "behind a proxy's path, too"
    assert views["dag"]["href"] == "/airflow/model-releases/dags/{DAG_ID}"
    assert len({view["url_route"] for view in found["views"]}) == 3, "Airflow drops a route that comes twice"
