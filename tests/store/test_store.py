"""Immutable versions against a real S3 server."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model_release.errors import ArchiveError, SpecError, StoreRefused, StoreUnavailable, VersionDamaged
from model_release.store.store import Store

METADATA = {
    "fingerprint": "f" * 64,
    "toolchain": {"torch": "2.13.0"},
    "labels": ["a", "b"],
    "source": "directory:/x",
    "service": "digits",
}


def layout(folder: Path, weights: bytes = b"weights" * 1000) -> Path:
    for name, content in {
        "config/config.properties": b"metrics_mode=prometheus\n",
        "model-store/digits.mar": weights,
        "smoke.json": b'{"instances": [], "expected": []}',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


class Counting:
    """A client that keeps the names of the objects that were written."""

    def __init__(self, client: Any) -> None:
        self._client, self.written, self.fail_on = client, [], ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        if self.fail_on and arguments["Key"].endswith(self.fail_on):
            raise ConnectionAbortedError("the worker was killed here")
        answer = self._client.put_object(**arguments)
        self.written.append(arguments["Key"].rpartition("versions/")[2])
        return answer


@pytest.fixture
def client(s3: Any) -> Counting:
    return Counting(s3.client)


@pytest.fixture
def store(client: Counting) -> Store:
    return Store(client, f"s3://models/{uuid.uuid4().hex}/")


def key(store: Store, name: str) -> str:
    return store.uri.removeprefix("s3://models/") + name


def test_a_version_is_published_whole_and_verified(store: Store, client: Counting, tmp_path: Path) -> None:
    version = store.publish(layout(tmp_path), METADATA)
    assert len(version.name) == 16
    assert version.storage_uri == f"{store.uri}versions/{version.name}/"
    assert client.written == [
        f"{version.name}/{name}"
        for name in ("config/config.properties", "model-store/digits.mar", "smoke.json", "version.json")
    ]
    assert version.files["model-store/digits.mar"] == {
        "sha256": hashlib.sha256(b"weights" * 1000).hexdigest(),
        "size": 7000,
    }
    assert version.metadata == {**METADATA, "evaluation": None}
    assert store.version(version.name) == version
    assert store.smoke(version) == {"instances": [], "expected": []}


def test_publishing_again_uploads_nothing(store: Store, client: Counting, tmp_path: Path) -> None:
    first = store.publish(layout(tmp_path), METADATA)
    client.written.clear()
    assert store.publish(layout(tmp_path), {**METADATA, "source": "elsewhere"}) == first
    assert client.written == []


def test_the_name_is_the_digest_of_what_is_served(store: Store, tmp_path: Path) -> None:
    one = store.publish(layout(tmp_path / "1"), METADATA)
    two = store.publish(layout(tmp_path / "2", b"other"), METADATA)
    assert one.name != two.name
    same = layout(tmp_path / "3")
    (same / "smoke.json").write_text('{"instances": [1], "expected": [1]}')
    assert store.publish(same, METADATA) == one


@pytest.mark.parametrize("killed_at", ["config.properties", "digits.mar", "smoke.json", "version.json"])
def test_killed_half_way_there_is_no_version_and_a_retry_sends_the_rest(
    store: Store, client: Counting, tmp_path: Path, killed_at: str
) -> None:
    client.fail_on = killed_at
    with pytest.raises(ConnectionAbortedError):
        store.publish(layout(tmp_path), METADATA)
    assert store.versions() == []
    sent_before = len(client.written)
    client.fail_on = ""
    version = store.publish(layout(tmp_path), METADATA)
    assert len(client.written) == 4
    assert len(set(client.written)) == 4
    assert sent_before < 4
    assert store.versions() == [version]


def test_half_written_and_unknown_versions(store: Store, s3: Any) -> None:
    name = "0123456789abcdef"
    with pytest.raises(VersionDamaged, match=f"{name}/ does not exist"):
        store.version(name)
    s3.client.put_object(Bucket="models", Key=key(store, f"versions/{name}/model-store/x.mar"), Body=b"x")
    with pytest.raises(VersionDamaged, match=r"is half-written: it lacks version.json"):
        store.version(name)
    for text in ("v1", "../../etc", "0123456789ABCDEF", "0123456789abcdef/\n"):
        with pytest.raises(SpecError, match="is no version's name"):
            store.version(text)


def test_changes_by_hand_are_found(store: Store, s3: Any, tmp_path: Path) -> None:
    version = store.publish(layout(tmp_path), METADATA)
    mar = key(store, f"versions/{version.name}/model-store/digits.mar")
    s3.client.put_object(Bucket="models", Key=mar, Body=b"w" * 7000, ChecksumAlgorithm="SHA256")
    with pytest.raises(VersionDamaged, match=r"model-store/digits.mar has another SHA-256"):
        store.version(version.name)
    s3.client.put_object(Bucket="models", Key=mar, Body=b"w" * 7000)
    with pytest.raises(VersionDamaged, match=r"model-store/digits.mar has another SHA-256"):
        store.version(version.name)
    s3.client.put_object(Bucket="models", Key=mar, Body=b"short")
    with pytest.raises(VersionDamaged, match="has 5 bytes instead of 7000"):
        store.version(version.name)
    s3.client.delete_object(Bucket="models", Key=mar)
    s3.client.put_object(Bucket="models", Key=mar + ".2", Body=b"x")
    with pytest.raises(VersionDamaged, match=r"digits.mar is missing; model-store/digits.mar.2 does not belong to it"):
        store.version(version.name)
    with pytest.raises(VersionDamaged):
        store.publish(layout(tmp_path), METADATA)


def test_a_strange_object_in_the_place_of_a_half_written_one_is_never_overwritten(
    store: Store, client: Counting, s3: Any, tmp_path: Path
) -> None:
    client.fail_on = "version.json"
    with pytest.raises(ConnectionAbortedError):
        store.publish(layout(tmp_path), METADATA)
    client.fail_on = ""
    mar = key(store, "versions/" + next(name for name in client.written if name.endswith(".mar")))
    s3.client.put_object(Bucket="models", Key=mar, Body=b"foreign")
    with pytest.raises(VersionDamaged, match="holds something else"):
        store.publish(layout(tmp_path), METADATA)
    assert s3.client.get_object(Bucket="models", Key=mar)["Body"].read() == b"foreign"


@pytest.mark.parametrize("content", [b"no json", b"[]", b"{}", b'{"version": "other", "files": {"a": {}}}'])
def test_a_record_that_is_none(store: Store, s3: Any, content: bytes) -> None:
    s3.client.put_object(Bucket="models", Key=key(store, "versions/0123456789abcdef/version.json"), Body=content)
    with pytest.raises(VersionDamaged, match=r"version.json is no"):
        store.version("0123456789abcdef")
    lines: list[str] = []
    assert Store(s3.client, store.uri, log=lines.append).versions() == []
    assert lines[0].startswith("left out: s3://models/")


def test_versions_newest_first_and_found_by_source_and_toolchain(store: Store, tmp_path: Path) -> None:
    one = store.publish(layout(tmp_path / "1", b"1"), METADATA)
    two = store.publish(layout(tmp_path / "2", b"2"), {**METADATA, "toolchain": {"torch": "3"}})
    three = store.publish(layout(tmp_path / "3", b"3"), {**METADATA, "fingerprint": "0" * 64})
    assert store.versions() == [three, two, one]
    assert store.find("f" * 64) == two
    assert store.find("f" * 64, toolchain={"torch": "2.13.0"}) == one
    assert store.find("f" * 64, toolchain={"torch": "1"}) is None
    assert store.find("f" * 64, service="digits") == two
    assert store.find("f" * 64, service="other") is None
    assert store.find("1" * 64) is None


def test_a_time_without_a_zone_is_utc(store: Store, tmp_path: Path) -> None:
    """As somebody's hand writes it into one version.json; records of releases are read so, too."""
    here = store.publish(layout(tmp_path / "1", b"1"), METADATA)
    by_hand = store.publish(layout(tmp_path / "2", b"2"), {**METADATA, "time": "2026-01-02T03:04:05"})
    assert store.versions() == [here, by_hand]
    assert by_hand.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_two_writers_of_one_version(store: Store, s3: Any, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    layout(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda number: store.publish(tmp_path, {**METADATA, "run": number}), range(4)))
    assert len({version.name for version in versions}) == 1
    assert len({version.metadata["run"] for version in versions}) == 1


def test_documents_with_optimistic_etags(store: Store) -> None:
    assert store.read_json("releases/r1.json") == (None, None)
    etag = store.write_json("releases/r1.json", {"state": "open"}, if_match=None)
    assert store.read_json("releases/r1.json") == ({"state": "open"}, etag)
    with pytest.raises(StoreUnavailable, match="somebody wrote it at the same moment"):
        store.write_json("releases/r1.json", {}, if_match=None)
    newer = store.write_json("releases/r1.json", {"state": "promoted"}, if_match=etag)
    with pytest.raises(StoreUnavailable):
        store.write_json("releases/r1.json", {"state": "lost"}, if_match=etag)
    assert store.read_json("releases/r1.json") == ({"state": "promoted"}, newer)


def test_stash_travels_to_another_machine_and_twice(store: Store, client: Counting, tmp_path: Path) -> None:
    source = layout(tmp_path / "a")
    store.stash("digits/run-1/export", source)
    client.written.clear()
    store.stash("digits/run-1/export", source)
    assert [name.rpartition("/")[2] for name in client.written] == ["stash.json"]
    (source / "config" / "config.properties").write_text("changed")
    (source / "smoke.json").unlink()
    store.stash("digits/run-1/export", source)
    for _ in range(2):
        store.unstash("digits/run-1/export", tmp_path / "b")
    found = sorted(
        path.relative_to(tmp_path / "b").as_posix() for path in (tmp_path / "b").rglob("*") if path.is_file()
    )
    assert found == ["config/config.properties", "model-store/digits.mar"]
    assert (tmp_path / "b" / "config" / "config.properties").read_text() == "changed"


def test_of_a_stash_only_what_is_asked_for_travels(store: Store, s3: Any, tmp_path: Path) -> None:
    store.stash("x", layout(tmp_path / "a"))
    s3.client.delete_object(Bucket="models", Key=key(store, "builds/x/model-store/digits.mar"))
    came = store.unstash("x", tmp_path / "b", only=["smoke.json"])
    assert came == {"smoke.json": hashlib.sha256((tmp_path / "a" / "smoke.json").read_bytes()).hexdigest()}
    assert [path.name for path in (tmp_path / "b").rglob("*")] == ["smoke.json"]


def test_a_version_is_held_by_the_store_to_the_digests_that_were_known(store: Store, tmp_path: Path) -> None:
    folder = layout(tmp_path / "a")
    with pytest.raises((StoreRefused, StoreUnavailable, VersionDamaged)):
        store.publish(folder, {}, {"model-store/digits.mar": "0" * 64})
    assert store.versions() == []


def test_a_stash_that_another_run_makes_again_can_be_read_meanwhile(store: Store, s3: Any, tmp_path: Path) -> None:
    """Dates of one backfill whose newest candidate is the same build the same, side by side."""
    source = layout(tmp_path / "a")
    store.stash("x", source)
    before = store.listing("builds/x/")

    class Beside(Counting):
        def __getattr__(self, name: str) -> Any:
            store.unstash("x", tmp_path / "b")
            return super().__getattr__(name)

    Store(Beside(s3.client), store.uri).stash("x", source)
    assert [name for name, _, _ in store.listing("builds/x/")] == [name for name, _, _ in before]


def test_a_stash_that_is_missing_changed_or_escapes(store: Store, s3: Any, tmp_path: Path) -> None:
    with pytest.raises(VersionDamaged, match="holds no finished build"):
        store.unstash("nothing", tmp_path / "b")
    store.stash("x", layout(tmp_path / "a"))
    s3.client.put_object(Bucket="models", Key=key(store, "builds/x/smoke.json"), Body=b"changed")
    with pytest.raises(VersionDamaged, match=r"smoke.json was changed after"):
        store.unstash("x", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    record = json.dumps({"files": {"../../escaped": "0" * 64}}).encode()
    s3.client.put_object(Bucket="models", Key=key(store, "builds/x/stash.json"), Body=record)
    with pytest.raises(VersionDamaged, match="outside of it"):
        store.unstash("x", tmp_path / "b")
    for name in ("../x", "a b", "", "a//b", "x\n"):
        with pytest.raises(SpecError, match="is no name for a build"):
            store.stash(name, tmp_path / "a")


def test_refusals_have_one_line_that_names_place_and_remedy(s3: Any, tmp_path: Path) -> None:
    layout(tmp_path)
    for client, uri, kind, reason in (
        (s3.client, "s3://missing/x/", StoreRefused, "s3://missing.*no such bucket"),
        (s3.other(secret_key="wrong"), "s3://models/x/", StoreRefused, "s3://models/x/.*credentials are wrong"),
        (s3.other(access_key="nobody"), "s3://models/x/", StoreRefused, "s3://models/x/.*credentials are wrong"),
        (s3.other(endpoint="http://127.0.0.1:9"), "s3://models/x/", StoreUnavailable, "does not answer"),
    ):
        with pytest.raises(kind, match=reason) as refusal:
            Store(client, uri).publish(tmp_path, METADATA)
        assert "\n" not in str(refusal.value)
        with pytest.raises(kind):
            Store(client, uri).versions()
        with pytest.raises(kind):
            Store(client, uri).read_json("releases/x.json")


def test_what_is_no_archive_is_not_published(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "smoke.json").write_text("{}")
    with pytest.raises(ArchiveError, match="holds no file to serve"):
        store.publish(tmp_path / "empty", METADATA)
    layout(tmp_path / "unchecked")
    (tmp_path / "unchecked" / "smoke.json").unlink()
    with pytest.raises(ArchiveError, match="was not checked"):
        store.publish(tmp_path / "unchecked", METADATA)


def test_the_server_checks_the_digest(s3: Any) -> None:
    """What `publish` relies on: a body that is not what its SHA-256 says is refused."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError):
        s3.client.put_object(Bucket="models", Key="x", Body=b"sent", ChecksumSHA256="A" * 43 + "=")
