"""The program that a pod runs before its model server: as the container runs it, on folders as KServe leaves them."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "include" / "manifests"
PROGRAM = MANIFESTS / "verify" / "verify_version.py"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """/mnt/models, of a whole version."""
    folder = tmp_path / "models"
    files = {"config/config.properties": b"metrics", "model-store/digits.mar": b"weights" * 1000, "smoke.json": b"{}"}
    listed = {}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "version.json").write_text(json.dumps({"version": "0123456789abcdef", "files": listed}))
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(PROGRAM), str(folder), *command], capture_output=True, text=True, timeout=30
    )


def test_a_whole_version_starts_what_serves_it_with_its_words_as_they_are(version: Path) -> None:
    show = "import sys; print(sys.argv[1:])"
    done = run(version, "--", sys.executable, "-c", show, "--model-store=/mnt/models", "a b; $(false)")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "Version 0123456789abcdef: 3 files are what version.json says",
        "['--model-store=/mnt/models', 'a b; $(false)']",
    ]
    assert run(version).returncode == 0, "run again, without a command"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "smoke.json").unlink(), "smoke.json is missing"),
        (
            lambda folder: (folder / "model-store/digits.mar").write_bytes(b"Weights" * 1000),
            "model-store/digits.mar has another SHA-256",
        ),
        (
            lambda folder: (folder / "model-store/digits.mar").write_bytes(b"w"),
            "model-store/digits.mar has 1 bytes instead of 7000",
        ),
        (
            lambda folder: (folder / "model-store/other.mar").write_bytes(b"w"),
            "model-store/other.mar does not belong to it",
        ),
    ],
)
def test_what_was_changed_is_not_served(version: Path, change: Any, said: str) -> None:
    change(version)
    done = run(version, "--", sys.executable, "-c", "print('started')")
    assert done.returncode == 1
    assert done.stderr == f"Version 0123456789abcdef is not what its version.json says: {said}\n"
    assert "started" not in done.stdout


@pytest.mark.parametrize(("built", "told"), [("99.1.0+cpu", True), ("1.13.1", False), (None, False)])
def test_t4_an_image_with_an_older_torch_than_the_builds_says_so(version: Path, built: str | None, told: bool) -> None:
    """T4: TorchScript is read by newer versions; an older one fails at some operator, or answers otherwise."""
    record = json.loads((version / "version.json").read_text())
    (version / "version.json").write_text(json.dumps({**record, **({"toolchain": {"torch": built}} if built else {})}))
    done = run(version, "--", sys.executable, "-c", "print('started')")
    assert done.stdout.splitlines()[-1] == "started"
    said = f"Version 0123456789abcdef was built by torch 99.1.0+cpu, and this image has {metadata.version('torch')}: "
    assert done.stderr.startswith(said) if told else done.stderr == ""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"../x": {}}}', '{"version": "x", "files": {"a": 1}}'])
def test_a_record_that_is_none_is_a_refusal(version: Path, content: str) -> None:
    (version / "version.json").write_text(content)
    done = run(version, "--", sys.executable, "-c", "print('started')")
    assert done.returncode == 1
    assert "is not what its version.json says: " in done.stderr
    assert "Traceback" not in done.stderr


def test_files_outside_of_the_folder_are_no_part_of_a_version(version: Path) -> None:
    outside = {"../secret": {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}}
    (version.parent / "secret").write_bytes(b"x")
    (version / "version.json").write_text(json.dumps({"version": "x", "files": outside}))
    assert "../secret would be outside of the folder" in run(version).stderr


def test_a_folder_without_a_record_is_served_and_said_to_be_unverified(version: Path) -> None:
    (version / "version.json").unlink()
    done = run(version, "--", sys.executable, "-c", "print('started')")
    assert done.stdout.splitlines() == [f"{version} has no version.json: served unverified", "started"]


def test_the_program_is_for_the_python_of_torchserves_image() -> None:
    """3.9; no annotation is evaluated that it does not know, and nothing is imported that it lacks."""
    tree = ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)]


def test_the_runtime_runs_it_before_the_images_own_entry_point() -> None:
    runtime = yaml.safe_load((MANIFESTS / "serving_runtime.yaml").read_text())["spec"]
    (container,) = runtime["containers"]
    made = yaml.safe_load((MANIFESTS / "verify" / "kustomization.yaml").read_text())["configMapGenerator"][0]
    (mount,) = container["volumeMounts"]
    assert mount["readOnly"]
    assert {"name": mount["name"], "configMap": {"name": made["name"]}} in runtime["volumes"]
    assert made["files"] == [PROGRAM.name]
    program = f"{mount['mountPath']}/{PROGRAM.name}"
    assert container["command"] == ["python", program, "/mnt/models", "--", "/usr/local/bin/dockerd-entrypoint.sh"]
    assert container["args"][0] == "torchserve"


@pytest.mark.parametrize(("image", "file"), [("serving", "own"), ("serving-kserve", "kserve")])
def test_the_projects_own_images_begin_with_it_too(image: str, file: str) -> None:
    """Nothing in their runtimes takes the place of the image's entry point."""
    text = (MANIFESTS.parent / "images" / image / "Dockerfile").read_text().replace("\\\n", " ")
    entrypoint = json.loads(next(line for line in text.splitlines() if line.startswith("ENTRYPOINT")).split(" ", 1)[1])
    assert entrypoint[:4] == ["python", "/opt/serving/verify_version.py", "/mnt/models", "--"]
    assert f"COPY include/manifests/verify/{PROGRAM.name} {entrypoint[1]}" in text
    (container,) = yaml.safe_load((MANIFESTS / f"serving_runtime_{file}.yaml").read_text())["spec"]["containers"]
    assert "command" not in container
