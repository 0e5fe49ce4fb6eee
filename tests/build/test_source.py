"""Where checkpoints come from, and each way in which one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from model_release.build.source import fetch, newest_candidate
from model_release.errors import CheckpointError, SourceUnavailable, SpecError, StoreRefused, StoreUnavailable


def change(folder: Path, name: str, **changes: Any) -> None:
    content = json.loads((folder / name).read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    (folder / name).write_text(json.dumps(content))


def test_a_folder_is_fetched_with_what_matters_and_nothing_else(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    (folder / "README.md").write_text("hello")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    found = fetch({"directory": str(folder)}, tmp_path / "here")
    assert sorted(path.name for path in found.directory.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert found.labels == ("cat", "dog", "tench, Tinca tinca")
    assert found.architecture == "ViTForImageClassification"
    assert found.origin == f"directory:{folder}"
    assert (found.candidate, found.commit, found.time) == (None, None, None)


def test_the_fingerprint_is_the_contents_alone(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    first = fetch({"directory": str(folder)}, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("irrelevant")
    again = fetch({"directory": str(tmp_path / "elsewhere")}, tmp_path / "a")
    assert again.fingerprint == first.fingerprint
    change(tmp_path / "elsewhere", "preprocessor_config.json", do_resize=False)
    other = fetch({"directory": str(tmp_path / "elsewhere")}, tmp_path / "a")
    assert other.fingerprint != first.fingerprint
    assert json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())["do_resize"] is False


@pytest.mark.parametrize("where", ["directory", "s3"])
def test_a_source_that_is_changed_while_it_is_read_is_not_half_old_and_half_new(
    where: str, make_checkpoint: Any, s3: Any, tmp_path: Path
) -> None:
    """Labels of one checkpoint and weights of another may fit each other, and answer wrong."""
    folder = make_checkpoint()
    upload(s3, folder, "changing/")
    source = {"directory": str(folder)} if where == "directory" else {"s3": "s3://models/changing/"}

    def another() -> None:
        change(folder, "config.json", id2label={"0": "dog", "1": "cat", "2": "tench, Tinca tinca"})
        upload(s3, folder, "changing/")

    class Client:
        """Before the weights are brought somebody puts another checkpoint there."""

        def __getattr__(self, name: str) -> Any:
            return getattr(s3.client, name)

        def download_file(self, bucket: str, key: str, *more: Any, **named: Any) -> None:
            if key.endswith(".safetensors"):
                another()
            s3.client.download_file(bucket, key, *more, **named)

    def copied(origin: Path, target: Path, **_: Any) -> None:
        if target.suffix == ".safetensors":
            another()
        target.write_bytes(origin.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        if where == "directory":
            patch.setattr(shutil, "copyfile", copied)
        with pytest.raises(SourceUnavailable, match=r"config\.json was changed while it was read"):
            fetch(source, tmp_path / "here", reach=lambda _: Client())
    assert not (tmp_path / "here").exists()
    assert fetch(source, tmp_path / "here", reach=lambda _: s3.client).labels[0] == "dog"


def test_the_newest_candidate_wins_up_to_a_date(make_checkpoint: Any, tmp_path: Path) -> None:
    for time in ("20261121T230000", "20261122T230000Z", "20261123T010000"):
        shutil.copytree(make_checkpoint(), tmp_path / "source" / time)
    (tmp_path / "source" / "zz-experiments").mkdir()
    source = {"directory": str(tmp_path / "source")}
    newest = fetch(source, tmp_path / "x")
    assert (newest.candidate, newest.time) == ("20261123T010000", datetime(2026, 11, 23, 1, tzinfo=UTC))
    backfilled = fetch(source, tmp_path / "x", not_later_than=datetime(2026, 11, 22, 23, tzinfo=UTC))
    assert backfilled.candidate == "20261122T230000Z"
    assert backfilled.origin.endswith("/source/20261122T230000Z")
    with pytest.raises(CheckpointError, match="nor a candidate made by 2025-01-01"):
        fetch(source, tmp_path / "x", not_later_than=datetime(2025, 1, 1, tzinfo=UTC))


def test_a_candidate_that_is_named(make_checkpoint: Any, tmp_path: Path) -> None:
    for time in ("20261121T230000", "20261122T230000"):
        shutil.copytree(make_checkpoint(), tmp_path / "source" / time)
    (tmp_path / "source" / "zz-experiments").mkdir()
    source = {"directory": str(tmp_path / "source")}
    named = fetch({**source, "revision": "20261121T230000"}, tmp_path / "x", not_later_than=datetime(2020, 1, 1))
    assert (named.candidate, named.time) == ("20261121T230000", datetime(2026, 11, 21, 23, tzinfo=UTC))
    for unknown in ("20261120T230000", "zz-experiments", "../source/20261121T230000"):
        with pytest.raises(CheckpointError, match=f"has no candidate '{unknown}'; the newest is 20261122T230000"):
            fetch({**source, "revision": unknown}, tmp_path / "x")


def test_a_relative_path_is_recorded_as_it_was_given(make_checkpoint: Any, tmp_path: Path) -> None:
    shutil.copytree(make_checkpoint(), tmp_path / "project" / "candidates" / "20261122T230000")
    found = fetch({"directory": "candidates/"}, tmp_path / "x", base=tmp_path / "project")
    assert found.origin == "directory:candidates/20261122T230000"
    with pytest.raises(CheckpointError, match="project/nowhere is no folder"):
        fetch({"directory": "nowhere"}, tmp_path / "x", base=tmp_path / "project")


def test_candidate_names() -> None:
    assert newest_candidate([]) is None
    assert newest_candidate(["latest", "20261399T000000", "2026-11-22", "20261122T2300001"]) is None
    assert newest_candidate(["20261122T230000", "20260101T000000", "tmp"]) == "20261122T230000"
    assert newest_candidate(["20261122T230000"], datetime(2026, 11, 22, 22, 59, 59)) is None
    assert newest_candidate(["20261122T230000"], datetime(2026, 11, 22, 23)) == "20261122T230000"


def test_sharded_weights(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"classifier.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert (fetch({"directory": str(folder)}, tmp_path / "x").directory / "model-00001-of-00001.safetensors").is_file()
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00001-of-00001.safetensors, named in"):
        fetch({"directory": str(folder)}, tmp_path / "x")
    index["weight_map"]["x"] = "../../secret.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="which is no shard"):
        fetch({"directory": str(folder)}, tmp_path / "x")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 343000000\n")


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'a': 1}")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json$"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors$"),
    "no config": (lambda f: (f / "config.json").unlink(), "neither config.json nor a candidate"),
    "pickled only": (pickled, r"only in pytorch_model.bin, .* save them as safetensors"),
    "no JSON": (no_json, "config.json is no JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is no JSON object"),
    "text model": (lambda f: change(f, "config.json", architectures=["BertModel"]), "its architecture is BertModel"),
    "no architecture": (lambda f: change(f, "config.json", architectures=None), "names no architecture"),
    "no labels": (lambda f: change(f, "config.json", id2label=None), "has no id2label"),
    "gap in labels": (lambda f: change(f, "config.json", id2label={"0": "a", "2": "b"}), "does not count from 0 to 1"),
    "labels that numbers do not tell apart": (
        lambda f: change(f, "config.json", id2label={"0": "a", "1": "a", "2": "a (1)"}),
        r"its numbers cannot tell apart: 'a \(1\)'",
    ),
    "labels as a list": (
        lambda f: change(f, "config.json", id2label=["a", "b"]),
        "id2label in config.json is no object",
    ),
    "regression": (lambda f: change(f, "config.json", problem_type="regression"), "values and no classes"),
    "C6 a Git LFS pointer": (
        lambda f: pointer(f / "model.safetensors"),
        "model.safetensors is a Git LFS pointer to a file of 343 MB; `git lfs pull`",
    ),
    "C6 a config that is a Git LFS pointer": (lambda f: pointer(f / "config.json"), "config.json is a Git LFS pointer"),
    "a LoRA adapter beside the weights": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "holds a LoRA adapter",
    ),
    "another processor's settings alone": (
        lambda f: (f / "preprocessor_config.json").rename(f / "processor_config.json"),
        "lacks preprocessor_config.json: processor_config.json says nothing of an image_processor",
    ),
    "label without number": (lambda f: change(f, "config.json", id2label={"a": "a"}), "a key that is no number"),
    "own code": (lambda f: change(f, "config.json", auto_map={"AutoModel": "own.Own"}), "config.json has auto_map"),
    "own processor code": (
        lambda f: change(f, "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Own"}),
        "preprocessor_config.json has auto_map",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_line_and_nothing_left(name: str, make_checkpoint: Any, tmp_path: Path) -> None:
    spoil, reason = REFUSED[name]
    folder = make_checkpoint()
    spoil(folder)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        fetch({"directory": str(folder)}, tmp_path / "work" / "x")
    assert str(folder) in str(refusal.value)
    assert not list((tmp_path).rglob("*.safetensors"))


def test_labels_by_number_where_only_their_count_is_known(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    change(folder, "config.json", id2label=None, num_labels=3)
    assert fetch({"directory": str(folder)}, tmp_path / "x").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


LABELLED: dict[str, tuple[dict[str, Any], tuple[str, ...], list[str]]] = {
    "a name twice": (
        {"id2label": {"0": "crane", "1": "cat", "2": "crane"}},
        ("crane (0)", "cat", "crane (2)"),
        ["several classes have one name and are told apart by their numbers: crane (0), crane (2)"],
    ),
    "unnamed": (
        {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}},
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ["3 classes have no name and are called LABEL_0, LABEL_1, LABEL_2"],
    ),
    "two unnamed, which transformers leaves out": (
        {"id2label": None, "label2id": None},
        ("LABEL_0", "LABEL_1"),
        ["2 classes have no name and are called LABEL_0, LABEL_1"],
    ),
    "one is null": (
        {"id2label": {"0": "cat", "1": None}},
        ("cat", "LABEL_1"),
        ["1 of 2 classes have no name and are called LABEL_1"],
    ),
    "numbers": ({"id2label": {"0": 5, "1": 7.5}}, ("5", "7.5"), []),
    "label_names": ({"id2label": None, "label_names": ["a", "b"]}, ("a", "b"), []),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_by_one_rule(name: str, make_checkpoint: Any, tmp_path: Path) -> None:
    changes, labels, notes = LABELLED[name]
    folder = make_checkpoint()
    change(folder, "config.json", **changes)
    lines: list[str] = []
    assert fetch({"directory": str(folder)}, tmp_path / "x", log=lines.append).labels == labels
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {note}" for note in notes]


def test_a_nested_processor_is_enough_and_is_fetched_beside_the_other(make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    both = fetch({"directory": str(folder)}, tmp_path / "x").directory
    assert (both / "processor_config.json").is_file()
    assert (both / "preprocessor_config.json").is_file()
    (folder / "preprocessor_config.json").unlink()
    assert (fetch({"directory": str(folder)}, tmp_path / "x").directory / "processor_config.json").is_file()


def test_an_adapter_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds a LoRA adapter .* merge it"):
        fetch({"directory": str(tmp_path / "adapter")}, tmp_path / "x")


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a source has one of directory, s3, gcs, azure, hub, mlflow, not ftp"):
        fetch({"ftp": "google/vit"}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="gcs, azure, hub, mlflow, not directory, s3"):
        fetch({"directory": "x", "s3": "s3://models/x/"}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="one of directory, s3, gcs, azure, hub, mlflow, not nothing"):
        fetch({}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="is no folder"):
        fetch({"directory": str(tmp_path / "nowhere")}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="needs a client"):
        fetch({"s3": "s3://models/x/"}, tmp_path / "x")


def upload(s3: Any, folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        s3.client.upload_file(str(path), "models", f"{prefix}{path.name}")


def test_s3_prefix_gives_what_the_folder_gives(s3: Any, make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint()
    local = fetch({"directory": str(folder)}, tmp_path / "a")
    upload(s3, folder, "sources/one/")
    # A neighbour whose name begins alike is another source.
    s3.client.put_object(Bucket="models", Key="sources/one-more/config.json", Body=b"{}")
    lines: list[str] = []
    remote = fetch({"s3": "s3://models/sources/one"}, tmp_path / "b", reach=lambda _: s3.client, log=lines.append)
    assert [line.split(":")[0] for line in lines if " in " in line] == [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]
    assert remote.fingerprint == local.fingerprint
    assert remote.origin == "s3://models/sources/one/"


def test_s3_candidates(s3: Any, make_checkpoint: Any, tmp_path: Path) -> None:
    for time in ("20261121T230000", "20261122T230000"):
        upload(s3, make_checkpoint(), f"sources/many/{time}/")
    found = fetch({"s3": "s3://models/sources/many/"}, tmp_path / "x", reach=lambda _: s3.client)
    assert (found.candidate, found.origin) == ("20261122T230000", "s3://models/sources/many/20261122T230000/")


def test_s3_refusals(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match=r"s3://missing/x/: .*no such bucket"):
        fetch({"s3": "s3://missing/x/"}, tmp_path / "x", reach=lambda _: s3.client)
    with pytest.raises(StoreRefused, match="secret key is wrong"):
        fetch({"s3": "s3://models/x/"}, tmp_path / "x", reach=lambda _: s3.other(secret_key="wrong"))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        fetch({"s3": "s3://models/x/"}, tmp_path / "x", reach=lambda _: s3.other(endpoint="http://127.0.0.1:9"))
    with pytest.raises(CheckpointError, match="s3://models/empty/ holds neither"):
        fetch({"s3": "s3://models/empty/"}, tmp_path / "x", reach=lambda _: s3.client)
    for address in ("models/x", "s3://", "s3://models//x/", "s3://models/x\n"):
        with pytest.raises(SpecError, match=r"is no (S3 address|address of a store)"):
            fetch({"s3": address}, tmp_path / "x", reach=lambda _: s3.client)
