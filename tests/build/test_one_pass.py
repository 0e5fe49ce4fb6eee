"""From a checkpoint in S3 to a published version, counted at the client: the weights are read once and written once."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tasks.conftest import SPEC, Outlets, TaskInstance

from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import connections, records, suggestions
from model_release.tasks.build import ArchiveModel, Export, Publish, Resolve
from model_release.tasks.run import Run
from model_release.tasks.which import Choice

from .conftest import ROOT, S3

LARGE = 50_000  # bytes; the weights have more, all else has less


class Counting:
    """A client that counts the large objects that were read and written, by the folder that they are in."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if name in ("copy_object", "copy", "upload_fileobj", "upload_part", "create_multipart_upload"):
            raise AssertionError(f"{name} is not counted here")
        return getattr(self._client, name)

    def download_file(self, bucket: str, key: str, target: str, **more: Any) -> None:
        self._client.download_file(bucket, key, target, **more)
        self.read[key.split("/")[1]] += Path(target).stat().st_size > LARGE

    def get_object(self, **given: Any) -> Any:
        answer = self._client.get_object(**given)
        self.read[given["Key"].split("/")[1]] += answer["ContentLength"] > LARGE
        return answer

    def put_object(self, **given: Any) -> Any:
        answer = self._client.put_object(**given)
        size = self._client.head_object(Bucket=given["Bucket"], Key=given["Key"])["ContentLength"]
        self.written[given["Key"].split("/")[1]] += size > LARGE
        return answer


@pytest.mark.parametrize("here", [True, False])
def test_the_weights_are_read_once_and_written_once_where_workers_share_a_machine(
    here: bool, s3: S3, make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = uuid.uuid4().hex[:8]
    for path in make_checkpoint().iterdir():
        s3.client.upload_file(str(path), "models", f"{prefix}/source/{path.name}")
    client = Counting(s3.client)
    monkeypatch.setattr(connections, "s3", lambda: client)
    if here:
        monkeypatch.setenv("MODEL_RELEASE_BUILDS", str(tmp_path / "builds"))
    else:
        monkeypatch.delenv("MODEL_RELEASE_BUILDS", raising=False)
    monkeypatch.setattr(suggestions, "remember", lambda *_: None)
    record = Record.new("r", model="digits", service="models/digits", version=None, started="2026-03-01T02:00:00Z")
    monkeypatch.setattr(records, "change", lambda _, __, edit: edit(record))
    source = {"s3": f"s3://models/{prefix}/source/"}
    spec = ModelSpec.model_validate({**SPEC, "source": source, "store": f"s3://models/{prefix}/"})

    resolve = Resolve(task_id="resolve", spec=spec, root=ROOT, build="export", built="publish")
    found = resolve.find(Choice(None, None, datetime.now(UTC), "the newest by now"))
    ti = TaskInstance(xcoms={("resolve", "resolved"): found})
    now = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
    dag_run = SimpleNamespace(
        dag_id="release_digits", run_id="manual__1", run_type="manual", run_after=now, data_interval_end=None
    )
    context = {"ti": ti, "dag_run": dag_run, "params": {"rollout": "auto"}, "outlet_events": Outlets()}
    for task in (Export, ArchiveModel, Publish):
        made = task(task_id=task.__name__.lower(), spec=spec, root=ROOT).release(context, Run.of(context, spec))
    assert record.version == made["version"]
    reads = {folder: count for folder, count in client.read.items() if count}
    writes = {folder: count for folder, count in client.written.items() if count}
    if here:
        assert (reads, writes) == ({"source": 1}, {"versions": 1})
    else:
        assert reads["source"] == writes["versions"] == 1
        assert reads["builds"] > 1, "what a folder of the machine saves"
        assert writes["builds"] > 1
