"""What OpenLineage is told: by the real provider, which is not part of the environment; and nothing without it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import install
import pytest

from model_release.spec import ModelSpec
from model_release.tasks import lineage
from model_release.tasks.run import Run

PROJECT = Path(__file__).resolve().parents[2]
VERSION = "0123456789abcdef"
URI = f"s3://models/digits/versions/{VERSION}/"
PROVIDER = "apache-airflow-providers-openlineage==2.20.3"
# What it needs beside what is here.
NEEDS = ["openlineage-python", "openlineage-integration-common", "openlineage-sql", "httpx2", "httpcore2", "truststore"]


@pytest.mark.parametrize(
    ("source", "namespace", "name", "version"),
    [
        ({"origin": "s3://training/faces/20261101T000000/", "candidate": "20261101T000000"}, "s3://training",
         "faces/20261101T000000", "20261101T000000"),
        ({"origin": "gs://training/faces/"}, "gs://training", "faces", None),
        ({"origin": "abfs://data@team7.dfs.core.windows.net/faces/"}, "abfs://data@team7.dfs.core.windows.net",
         "faces", None),
        ({"origin": "directory:candidates/digits"}, "file", "candidates/digits", None),
        ({"origin": "models:/digits/7", "commit": "7 of run 1"}, "mlflow", "digits", "7"),
        ({"origin": "https://huggingface.co/own/faces@abc", "commit": "abc"}, "https://huggingface.co", "own/faces",
         "abc"),
    ],
)  # fmt: skip
def test_a_checkpoint_is_named_as_others_name_it(
    spec: ModelSpec, context: Any, source: dict[str, Any], namespace: str, name: str, version: str | None
) -> None:
    told = lineage.published(spec, Run.of(context, spec), VERSION, URI, source, {"fingerprint": "f" * 64})
    ((one,), (made,)) = told.inputs, told.outputs
    assert (one.namespace, one.name, one.version) == (namespace, name, version)
    assert (made.namespace, made.name, made.version) == ("s3://models", f"digits/versions/{VERSION}", VERSION)
    assert made.about == {"fingerprint": "f" * 64}


def test_a_version_in_azure_has_the_name_that_its_store_has(spec: ModelSpec, context: Any) -> None:
    """KServe's address of it is another one, and would be another dataset."""
    uri = f"https://team7.blob.core.windows.net/models/digits/versions/{VERSION}/"
    told = lineage.live(spec, Run.of(context, spec), VERSION, uri, "promote", "0 of 60 failed")
    assert (told.inputs[0].namespace, told.inputs[0].name) == (
        "abfs://models@team7.dfs.core.windows.net",
        f"digits/versions/{VERSION}",
    )


def test_without_the_provider_nothing_of_it_is_needed() -> None:
    assert importlib.util.find_spec("openlineage") is None


# As the provider's listener asks when a task has ended (airflow.providers.openlineage.plugins.listener).
ASKS = """
import json, sys
from types import SimpleNamespace
from airflow.providers.openlineage.extractors.manager import ExtractorManager
from airflow.utils.state import TaskInstanceState
from openlineage.client.serde import Serde
from model_release.spec import ModelSpec
from model_release.tasks import lineage
from model_release.tasks.finish import Report
from model_release.tasks.run import Run
from model_release.tasks.serve import Promote
spec, run = ModelSpec.model_validate_json(sys.argv[1]), Run(**json.loads(sys.argv[2]))
promote, report = Promote(task_id="promote", spec=spec), Report(task_id="report", spec=spec)
promote.lineage = lineage.live(spec, run, "0123456789abcdef", sys.argv[3], "promote", "0 of 60 failed")
report.lineage = lineage.ended(spec, run, "0123456789abcdef", "rolled_back", "3 of 60 failed")
ended = [(promote, TaskInstanceState.SUCCESS), (report, TaskInstanceState.FAILED)]
ended.append((Promote(task_id="again", spec=spec), TaskInstanceState.SUCCESS))  # one that did nothing
for task, state in ended:
    ti = SimpleNamespace(task=task, task_id=task.task_id)
    found = ExtractorManager().extract_metadata(run, task, state, ti)
    inputs, outputs = ([Serde.to_dict(one) for one in data] for data in (found.inputs, found.outputs))
    run_facets = {name: Serde.to_dict(facet) for name, facet in found.run_facets.items()}
    print("TOLD", json.dumps({"inputs": inputs, "outputs": outputs, "run": run_facets}))
"""


@pytest.mark.walk
def test_the_provider_is_told_of_version_service_verdict_and_record(
    spec: ModelSpec, context: Any, tmp_path: Path
) -> None:
    where = ["--target", str(tmp_path), "--python", sys.executable, "--no-deps"]
    index = install.pips_index()
    done = subprocess.run(
        [str(install.find_uv()), "pip", "install", "--quiet", *where, PROVIDER, *NEEDS],
        env={**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = Run.of(context, spec)
    words = [spec.model_dump_json(exclude_none=True), json.dumps(vars(run)), URI]
    path = os.pathsep.join([str(tmp_path), str(PROJECT / "plugins"), str(PROJECT / "include")])
    done = subprocess.run(
        [sys.executable, "-c", ASKS, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    lines = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert len(lines) == 3, done.stdout + done.stderr
    promoted, ended, nothing = map(json.loads, lines)
    ((source,), (service,)) = promoted["inputs"], promoted["outputs"]
    assert (source["namespace"], source["name"]) == ("s3://models", f"digits/versions/{VERSION}")
    assert source["facets"]["version"]["datasetVersion"] == VERSION
    assert (service["namespace"], service["name"]) == ("kserve", "models/digits")
    assert service["facets"]["modelRelease"]["uri"] == URI
    facet = promoted["run"]["modelRelease"]
    assert (facet["verdict"], facet["version"]) == ("0 of 60 failed", VERSION)
    assert facet["record"] == f"s3://models/digits/releases/{run.release}.json"
    assert facet["page"] == run.page
    told = ended["run"]["modelRelease"]
    assert (told["outcome"], told["verdict"]) == ("rolled_back", "3 of 60 failed")
    assert nothing == {"inputs": [], "outputs": [], "run": {}}
