"""docs/security.md holds to what there is, and the guards that belong to no single room hold.

A guard names its tests as `path::name`. Here each of them is looked up in its file (nothing is imported for it), and a
guard without one is a fault. Attacks on one part are in that part's own tests; the ones below were tried by hand first.
"""

from __future__ import annotations

import ast
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from model_release.build.bare_check import Refusal, unpack
from model_release.build.inspection import MAX_TEXT
from model_release.build.source import fetch
from model_release.errors import CheckpointError, SpecError

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "security.md"
CODE = sorted(path for part in ("plugins", "include", "dags", ".ci") for path in (PROJECT / part).rglob("*.py"))


# The page


@cache
def written_in(path: Path) -> frozenset[str]:
    """Names of test functions, and `Class::name` of those in classes."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = [(f"{node.name}::", one) for one in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
        found |= {
            f"{before}{one.name}" for before, one in inside if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return frozenset(found)


def guards() -> list[tuple[str, list[str]]]:
    """(what is tried, its tests) of each row of the page's tables that have a column of tests."""
    rows, in_table = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        in_table = line.startswith("|") and (in_table or cells[-1] == "tests")
        if in_table and cells[-1] != "tests" and not line.startswith("|---"):
            rows.append((cells[0], re.findall(r"`([^`]+::[^`]+)`", cells[-1])))
    return rows


def test_every_guard_of_the_page_has_a_test() -> None:
    found = guards()
    assert len(found) > 30
    assert [guard for guard, tests in found if not tests] == []


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/[^`:]+\.py)::([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    absent = [
        f"{path}::{name}"
        for path, name in named
        if not (PROJECT / path).is_file() or name not in written_in(PROJECT / path)
    ]
    assert absent == []


# What no code of this project does


@cache
def every_call() -> list[tuple[Path, str, ast.Call]]:
    """(file, dotted name, call) of all that this project's code calls."""
    return [
        (path, ast.unparse(node.func), node)
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Every call of a function or method of that (dotted) name."""
    return ((path, call) for path, said, call in every_call() if f".{said}".endswith(f".{name}"))


#: What would make code of text, or of a file.
RUNNING = [
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
]
STARTING = ["run", "Popen", "call", "check_output", "check_call", "create_subprocess_exec"]


@pytest.mark.parametrize("name", [*RUNNING, "joblib.load", "shelve.open", "tempfile.mktemp", "create_subprocess_shell"])
def test_nothing_runs_text_or_opens_what_can_run(name: str) -> None:
    assert [f"{path}:{call.lineno}" for path, call in calls(name)] == []


def test_a_models_eval_is_the_only_one() -> None:
    assert [f"{path}:{call.lineno}" for path, call in calls("eval") if call.args] == []


def test_no_process_is_started_by_a_shell() -> None:
    named = [(path, keyword.arg) for name in STARTING for path, call in calls(name) for keyword in call.keywords]
    assert len(named) > 10
    assert [path for path, argument in named if argument == "shell"] == []


def test_a_checkpoint_is_loaded_from_safetensors_without_its_code() -> None:
    found = list(calls("from_pretrained"))
    assert {path.name for path, _ in found} == {"original.py", "pixels.py"}
    for _, call in found:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given["trust_remote_code"] == "False"
        assert given["local_files_only"] == "True"
        assert "ImageProcessor" in ast.unparse(call.func) or given["use_safetensors"] == "True"


def test_no_task_of_any_dag_is_a_template() -> None:
    """Airflow renders `template_fields` with what users type; nothing of ours has any. In a process of its own: these
    imports take seconds, and Airflow wants a home."""
    program = (
        "import json, sys, yaml; from pathlib import Path; project = Path(sys.argv[1])\n"
        "from model_release.model_file import load_all\n"
        "from model_release.spec import ModelSpec\n"
        "from model_release.tasks.dag import release_dag\n"
        "from model_release.tasks.emergency import emergency_dags\n"
        "from model_release.tasks.retrain import retrain_dag\n"
        "from model_release.tasks.sweep import sweep_dag\n"
        "specs = list(load_all(project / 'include' / 'models').values())\n"
        "one = json.loads(specs[0].model_dump_json(exclude_none=True))\n"
        "one |= {'source': {'s3': 's3://bucket/faces/'}, 'approval': 'before_promote',\n"
        "        'build': {'in': 'pod', 'image': 'build:1'}, 'evaluation': {'data': 's3://bucket/images/'},\n"
        "        'training': {'image': 'train:1', 'arguments': {'note': '{{ conf }}'}}}\n"
        "specs.append(ModelSpec.model_validate(one))\n"
        "dags = [sweep_dag(project / 'include' / 'models', schedule='*/5 * * * *')]\n"
        "for spec in specs:\n"
        "    dags += [release_dag(spec, project), *emergency_dags(spec).values()]\n"
        "    dags += [retrain_dag(spec, project)] if spec.training else []\n"
        "tasks = [(dag.dag_id, task) for dag in dags for task in dag.tasks]\n"
        "print(json.dumps({f'{dag}.{task.task_id}': list(task.template_fields) for dag, task in tasks}))\n"
    )
    path = os.pathsep.join(str(PROJECT / part) for part in ("plugins", "include"))
    done = subprocess.run([sys.executable, "-c", program, str(PROJECT)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    fields = json.loads(done.stdout.splitlines()[-1])
    assert len(fields) > 40
    assert {task for task, found in fields.items() if found} == set()


# A malicious checkpoint


def checkpoint(folder: Path, *, processor: dict[str, Any] | None = None, **config: Any) -> Path:
    """As much of a checkpoint as is read before it is loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "cat", "1": "dog"}, **config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or {"size": {"height": 32, "width": 32}}))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "labels by number": ({"id2label": None, "num_labels": 10**12}, "has 1000000000000 labels; the limit is 100000"),
    "labels by name": ({"id2label": {str(n): str(n) for n in range(100_001)}}, "has 100001 labels"),
    "one long label": ({"id2label": {"0": "x" * 501}}, "label 0 in config.json has 501 characters"),
    "a label for a terminal": ({"id2label": {"0": "cat\x1b[2J"}}, r"a character that is no text: 'cat\\x1b\[2J'"),
    "a label that is no text": ({"id2label": {"0": "\ud800"}}, "a character that is no text"),
    "code deep inside": ({"vision_config": [{"auto_map": {"AutoModel": "own.Own"}}]}, "config.json has auto_map"),
    "a kernel of the hub": ({"attn_implementation": "evil/kernel"}, "a kernel of the hub, which is code"),
    "a kernel for a part": ({"_attn_implementation": {"vision": "a/b:c"}}, "a kernel of the hub, which is code"),
    "a giant picture": ({"processor": {"size": {"height": 40_000, "width": 32}}}, "the limit for a side is 4096"),
    "a giant crop": ({"processor": {"crop_size": 10**9}}, "the limit for a side is 4096"),
    "a giant input": ({"image_size": [32, 10**5]}, "the limit for a side is 4096"),
    "no list of architectures": ({"architectures": 5}, "its config names no architecture"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_checkpoint_that_would_run_code_or_never_end_is_refused(name: str, tmp_path: Path) -> None:
    changes, why = BOMBS[name]
    source = checkpoint(tmp_path / "source", **changes)
    with pytest.raises(CheckpointError, match=why):
        fetch({"directory": str(source)}, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def _deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


def _long(folder: Path) -> None:
    with (folder / "config.json").open("w") as file:
        file.truncate(MAX_TEXT + 1)


def _header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", MAX_TEXT + 1))
        file.truncate(MAX_TEXT + 9)


def _giant(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(6 * 1024**3)  # of holes


def _index(content: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))

    return spoil


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nested without end": (_deep, "config.json is no JSON: maximum recursion depth"),
    "a text without end": (_long, "config.json has 17 MB; the limit is 17 MB"),
    "a header without end": (_header, "model.safetensors has a header of 17 MB"),
    "weights without end": (_giant, r"has 6.4 GB of weights; an archive of more than 5.4 GB cannot be published"),
    "shards elsewhere": (_index({"a": "../../other.safetensors"}), "which is no shard"),
    "shards that are a list": (_index(["a"]), "names no shards"),
    "shards that are no names": (_index({"a": {}}), "which is no shard"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_made_to_fill_memory_or_disk_are_refused(name: str, tmp_path: Path) -> None:
    spoil, why = FILES[name]
    source = checkpoint(tmp_path / "source")
    spoil(source)
    with pytest.raises(CheckpointError, match=why):
        fetch({"directory": str(source)}, tmp_path / "here")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_link_out_of_the_source_is_not_followed(name: str, tmp_path: Path) -> None:
    """Who may write candidates must not have the worker read its secrets into the store for them."""
    checkpoint(tmp_path / "elsewhere")
    candidate = checkpoint(tmp_path / "source" / "20261122T230000")
    (candidate / name).unlink()
    (candidate / name).symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(CheckpointError, match=f"{name} leads out of its folder by a link"):
        fetch({"directory": str(tmp_path / "source")}, tmp_path / "here")
    whole = tmp_path / "source" / "20261123T230000"
    whole.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of its folder by a link"):
        fetch({"directory": str(tmp_path / "source")}, tmp_path / "here")


def test_a_link_within_the_source_is_followed(tmp_path: Path) -> None:
    checkpoint(tmp_path / "source" / "kept")
    (tmp_path / "source" / "20261122T230000").symlink_to("kept")
    assert fetch({"directory": str(tmp_path / "source")}, tmp_path / "here").labels == ("cat", "dog")


@pytest.mark.parametrize("revision", ["feature/../../../../etc/passwd", "main\n", "/etc/passwd", "", "x" * 101])
def test_a_revision_is_a_name_and_no_path(revision: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no revision of the hub"):
        fetch({"hub": "owner/name", "revision": revision}, tmp_path / "here")


def test_a_build_may_take_so_much_memory_and_no_more(tmp_path: Path) -> None:
    from model_release.build import processes

    program = (
        "import json\n"
        "try:\n    bytearray(600 << 20)\n"
        "except MemoryError:\n    print(json.dumps({'report': {'stopped': True}}))\n"
    )
    env = processes.environment(LEASH_MEMORY=str(500 << 20))
    report = processes.run(["-c", program], what="it", log=print, env=env, timeout=60, cwd=tmp_path)
    assert report == {"stopped": True}


# A malicious archive


def mar(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {"MAR-INF/MANIFEST.json": b"{}", **entries}.items():
            archive.writestr(name, content)
    return path


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    names = ["../out.py", "../../out.py", "/tmp/out-of-the-archive.py", "a/../../out.py"]
    unpack(mar(tmp_path / "evil.mar", dict.fromkeys(names, b"x")), tmp_path / "deep" / "folder")
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and "folder" not in path.parts]
    assert [path.name for path in outside] == ["evil.mar"]
    assert not Path("/tmp/out-of-the-archive.py").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_an_archive_that_would_swell_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = mar(tmp_path / "bomb.mar", {"zeros": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(Refusal, match=r"bomb\.mar is compressed"):
        unpack(bomb, tmp_path / "x")
    stored = mar(tmp_path / "overlap.mar", {"a": bytes(1000)}).read_bytes()
    lying = stored.replace(struct.pack("<II", 1000, 1000), struct.pack("<II", 10**9, 10**9))
    (tmp_path / "overlap.mar").write_bytes(lying)
    with pytest.raises(Refusal, match="would unpack to more than its own size"):
        unpack(tmp_path / "overlap.mar", tmp_path / "x")
    (tmp_path / "none.mar").write_bytes(b"no zip")
    with pytest.raises(Refusal, match=r"none\.mar is no archive"):
        unpack(tmp_path / "none.mar", tmp_path / "x")
    assert not (tmp_path / "x").exists()
