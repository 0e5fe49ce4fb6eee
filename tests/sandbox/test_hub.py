"""The sandbox's hub, asked by huggingface_hub; and the walk-through's models in it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from tests.patience import LIMIT

from model_release.model_file import load_all
from sandbox import walkthrough_models
from sandbox.hub import Hub
from sandbox.repositories import Repositories

PROJECT = Path(__file__).resolve().parents[2]
NAME = "team/model"
TIME = datetime(2026, 11, 16, 12, tzinfo=UTC)
FILES: dict[str, bytes | Path] = {"config.json": b"{}", "model.safetensors": b"0123456789", "onnx/config.json": b"[]"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as running:
        yield running


def status(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LIMIT) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_what_huggingface_hub_reads(hub: Hub, tmp_path: Path) -> None:
    first = hub.add_commit(NAME, FILES, TIME, "first")
    second = hub.add_commit(NAME, {"config.json": b'{"a": 1}'}, TIME + timedelta(hours=1), "second")
    hub.tag(NAME, "v1", first)
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(NAME)
    assert (info.sha, info.last_modified, info.private) == (second, TIME + timedelta(hours=1), False)
    assert api.model_info(NAME, revision="v1").sha == first
    commits = api.list_repo_commits(NAME)
    assert [(one.commit_id, one.title, one.created_at) for one in commits] == [
        (second, "second", TIME + timedelta(hours=1)),
        (first, "first", TIME),
    ]
    refs = api.list_repo_refs(NAME)
    assert [(ref.name, ref.target_commit) for ref in (*refs.branches, *refs.tags)] == [("main", second), ("v1", first)]
    assert api.list_repo_files(NAME) == ["config.json", "model.safetensors", "onnx/config.json"]
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME)}
    assert sorted(tree) == ["config.json", "model.safetensors", "onnx"]
    assert [entry.path for entry in api.list_repo_tree(NAME, "onnx")] == ["onnx/config.json"]
    snapshot = Path(api.snapshot_download(NAME, revision="v1", cache_dir=tmp_path / "cache"))
    assert {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*.*")} == FILES


def test_files_are_named_as_git_names_them(hub: Hub, tmp_path: Path) -> None:
    hub.add_commit(NAME, FILES, TIME, "first")
    commit = hub.repositories.get(NAME)
    assert commit is not None
    blob = next(iter(commit.commits.values())).files["config.json"]
    (tmp_path / "config.json").write_bytes(b"{}")
    done = subprocess.run(["git", "hash-object", str(tmp_path / "config.json")], capture_output=True, text=True)
    assert blob.oid == done.stdout.strip()


def test_a_commit_twice_is_one(hub: Hub) -> None:
    first = hub.add_commit(NAME, FILES, TIME, "first")
    second = hub.add_commit(NAME, {"config.json": b"[]"}, TIME, "second")
    assert hub.add_commit(NAME, FILES, TIME, "first") == first
    assert hub.add_commit(NAME, {"config.json": b"[]"}, TIME, "second") == second
    assert len(HfApi(endpoint=hub.url, token=False).list_repo_commits(NAME)) == 2
    with pytest.raises(ValueError, match="is before the newest commit on main"):
        hub.add_commit(NAME, {"config.json": b"1"}, TIME - timedelta(seconds=1), "too late")
    with pytest.raises(ValueError, match="is no name of a repository"):
        hub.add_commit("../../etc/x", FILES, TIME, "elsewhere")


def test_it_gives_nothing_to_those_who_may_not_have_it(hub: Hub) -> None:
    hub.add_commit(NAME, FILES, TIME, "first")
    address = f"{hub.url}/{NAME}/resolve/main/model.safetensors"
    assert status(address) == (200, b"0123456789")
    link = next(one.path for one in hub.requests if one.store)
    assert status(hub.store_url + link)[0] == 200
    assert status(hub.store_url + link.split("?")[0])[0] == 403
    assert status(hub.store_url + link.replace("signature=", "signature=0"))[0] == 403
    hub.protect(NAME, token="hf_word")
    assert status(address)[0] == 401
    assert status(address, Authorization="Bearer hf_other")[0] == 404
    assert status(address, Authorization="Bearer hf_word")[0] == 200
    assert b"hf_word" not in next(hub.repositories.folder.glob("team/*.json")).read_bytes()
    for strange in ("/api/models/../../etc/passwd", "/%2e%2e/%2e%2e/resolve/main/x", "/", "/api/models/a"):
        assert status(hub.url + strange)[0] in (401, 404)


def test_parts_of_a_file(hub: Hub) -> None:
    hub.add_commit(NAME, FILES, TIME, "first")
    address = f"{hub.url}/{NAME}/resolve/main/model.safetensors"
    assert status(address, Range="bytes=4-") == (206, b"456789")
    assert status(address, Range="bytes=10-")[0] == 416


def test_a_process_serves_what_another_one_writes(tmp_path: Path) -> None:
    repositories = Repositories(tmp_path / "hub")
    repositories.add_commit(NAME, FILES, TIME, "first")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "include")}
    command = [sys.executable, "-m", "sandbox.hub", str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert status(f"{url}/{NAME}/resolve/main/config.json") == (200, b"{}")
            repositories.add_commit(NAME, {"config.json": b"new"}, TIME, "second")
            assert status(f"{url}/{NAME}/resolve/main/config.json") == (200, b"new")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_model_files_of_the_walk_through_find_their_models(tmp_path: Path) -> None:
    from model_release.build.hub import HubAccess
    from model_release.build.source import fetch

    lines: list[str] = []
    commits = walkthrough_models.publish(tmp_path / "hub", lines.append)
    assert walkthrough_models.publish(tmp_path / "again", lines.append) == commits, "equal bytes each time"
    specs = load_all(PROJECT / "include" / "models")
    with Hub(tmp_path / "hub") as hub:
        for name, model in walkthrough_models.MODELS.items():
            source = specs[name].source.model_dump(exclude_none=True)
            found = fetch(source, tmp_path / name, hub=HubAccess(hub.url, home=tmp_path / "home"))
            assert (found.labels, found.commit, found.time) == (model.labels, commits[name], model.time)
            assert specs[name].service.key == "models/classifier-vit"
    assert [len(model.labels) for model in walkthrough_models.MODELS.values()] == [7, 3, 18]


def test_pictures_for_a_load_test() -> None:
    from PIL import Image

    pictures = walkthrough_models.images()
    assert pictures == walkthrough_models.images()
    assert pictures != walkthrough_models.images(seed=1)
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    assert len({image.size for image in opened}) >= 5
    assert {image.format for image in opened} == {"PNG", "JPEG"}
    assert {image.mode for image in opened} == {"RGB", "L"}
    assert sum(map(len, pictures)) < 1_000_000
