from __future__ import annotations

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sandbox.ports import Ports
from sandbox.s3 import ModelStore
from sandbox.storage import DownloadFailed, download

pytestmark = pytest.mark.stack


async def test_objects_and_credentials_survive_a_restart(state: Path, store: ModelStore) -> None:
    store.client().put_object(Bucket="models", Key="kept", Body=b"here")
    await store.ensure_bucket("models")  # twice is once
    await store.stop()
    again = ModelStore(state, Ports(state / "ports.json"))
    assert (again.url, again.access_key, again.secret_key) == (store.url, store.access_key, store.secret_key)
    await again.start()
    assert again.client().get_object(Bucket="models", Key="kept")["Body"].read() == b"here"
    await again.stop()


async def test_only_the_keys_made_for_this_sandbox_open_it(store: ModelStore, state: Path) -> None:
    identities = state / "s3/identities.json"
    assert identities.stat().st_mode & 0o777 == 0o600
    assert store.secret_key in identities.read_text()
    store.secret_key = store.secret_key[::-1]
    with pytest.raises(ClientError) as refused:
        store.client().list_buckets()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_the_storage_initializers_rules(store: ModelStore, tmp_path: Path) -> None:
    client = store.client()
    for key, body in (
        ("v1/config/a", b"one"),
        ("v1/model-store/b", b"two"),
        ("v1/empty", b""),
        ("v10/config/a", b"ten"),
        ("single/model.bin", b"alone"),
    ):
        client.put_object(Bucket="models", Key=key, Body=body)
    into = tmp_path / "model"

    def files() -> dict[str, bytes]:
        return {str(file.relative_to(into)): file.read_bytes() for file in into.rglob("*") if file.is_file()}

    assert download(client, "s3://models/v1/", into) == 2
    assert files() == {"config/a": b"one", "model-store/b": b"two"}
    # Without the slash the prefix matches the neighbour too, as on KServe.
    assert download(client, "s3://models/v1", into) == 3
    assert download(client, "s3://models/single/model.bin", into) == 1
    assert files() == {"model.bin": b"alone"}, "the files of the download before are gone"
    with pytest.raises(DownloadFailed, match=r"^Failed to fetch model\. No model found in none/\.$"):
        download(client, "s3://models/none/", into)
    with pytest.raises(DownloadFailed, match="NoSuchBucket"):
        download(client, "s3://no-such-bucket/v1/", into)
    with pytest.raises(DownloadFailed, match="Cannot recognize storage type for gs://b/v1/"):
        download(client, "gs://b/v1/", into)


async def test_a_single_archive_is_unpacked_and_cannot_lead_out(store: ModelStore, tmp_path: Path) -> None:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config/a", "one")
        archive.writestr("../escaped", "two")
    store.client().put_object(Bucket="models", Key="z/model.zip", Body=buffer.getvalue())
    download(store.client(), "s3://models/z/", tmp_path / "model")
    assert (tmp_path / "model/config/a").read_text() == "one"
    assert not (tmp_path / "escaped").exists()


def test_the_identities_file_is_what_seaweedfs_reads(state: Path) -> None:
    store = ModelStore(state, Ports(state / "ports.json"))
    (identity,) = json.loads((state / "s3/identities.json").read_text())["identities"]
    assert identity["credentials"] == [{"accessKey": store.access_key, "secretKey": store.secret_key}]
    assert "-master.telemetry=false" in store.child._argv
