"""The .mar and its configuration: KServe's layout, reproducible, and checked where there is nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.build import bare_check
from model_release.build.archive import Archive, archive, check, load
from model_release.build.export import Export
from model_release.build.runtimes import torchserve
from model_release.errors import ArchiveError, SpecError
from model_release.store import files

HANDLER = Path(__file__).resolve().parents[2] / "include" / "handlers" / "image_classifier.py"


def properties(packed: Archive) -> dict[str, str]:
    lines = (packed.directory / "config" / "config.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_kserves_layout(packed: Archive) -> None:
    names = set(files.digests(packed.directory)) - {"smoke.json"}
    assert names == {"config/config.properties", "config/metrics.yaml", "model-store/tiny.mar"}
    settings = properties(packed)
    assert settings["metrics_mode"] == "prometheus"
    assert settings["disable_token_authorization"] == "true"
    assert settings["install_py_dep_per_model"] == "false"
    assert settings["metrics_config"] == "/mnt/models/config/metrics.yaml"
    assert settings["model_store"] == "/mnt/models/model-store"
    assert settings["management_address"].startswith("http://127.0.0.1:")
    snapshot = json.loads(settings["model_snapshot"])
    ((name, ((version, model),)),) = ((name, tuple(v.items())) for name, v in snapshot["models"].items())
    assert (name, version, model["marName"]) == ("tiny", "1.0", "tiny.mar")
    assert (model["batchSize"], model["maxBatchDelay"], model["minWorkers"]) == (2, 0, 1)


def test_t3_a_request_may_take_as_long_as_the_model_file_says(exported: Any, packed: Archive, tmp_path: Path) -> None:
    """TorchServe ended a request after two minutes, and started the worker anew, whatever `service.timeout` said."""

    def seconds(made: Archive) -> Any:
        return json.loads(properties(made)["model_snapshot"])["models"]["tiny"]["1.0"]["responseTimeout"]

    assert seconds(packed) == 2 * 60, "the default of service.timeout, for each of two that may go together"
    patient = archive(exported.directory, "tiny", HANDLER, tmp_path / "patient", response_timeout=300)
    assert seconds(patient) == 2 * 300
    settings = {"response_timeout": 300, "batching": {"max": 8, "within_ms": 5}}
    together = archive(exported.directory, "tiny", HANDLER, tmp_path / "together", **settings)
    assert seconds(together) == 300, "of the whole batch"
    assert patient.sha256 == packed.sha256, "the model is the same"


def test_own_dimensions_come_before_those_that_torchserve_appends(packed: Archive) -> None:
    metrics = yaml.safe_load((packed.directory / "config" / "metrics.yaml").read_text())["model_metrics"]
    declared = {metric["name"]: metric["dimensions"] for kind in metrics.values() for metric in kind}
    assert declared["image_classifier_predictions_total"] == ["label", "ModelName", "Level"]
    assert declared["image_classifier_confidence_total"] == ["below", "ModelName", "Level"]
    assert declared["image_classifier_certainty_total"] == ["below", "ModelName", "Level"]
    assert declared["image_classifier_slices_total"] == ["slice", "value", "below", "ModelName", "Level"]
    assert declared["image_classifier_request_seconds"] == ["ModelName", "Level"]


def test_the_archive_is_stored_and_holds_what_the_handler_needs(packed: Archive) -> None:
    with zipfile.ZipFile(packed.file) as mar:
        entries = mar.infolist()
        manifest = json.loads(mar.read("MAR-INF/MANIFEST.json"))
    assert [entry.filename for entry in entries] == [
        "MAR-INF/MANIFEST.json",
        "image_classifier.py",
        "image_headers.py",
        "image_input.py",
        "image_model.py",
        "image_pixels.py",
        "image_requests.py",
        "image_slices.py",
        "model.json",
        "model.pt",
    ]
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert manifest["model"] == {
        "modelName": "tiny",
        "modelVersion": "1.0",
        "handler": "image_classifier.py",
        "serializedFile": "model.pt",
    }


def test_equal_input_gives_equal_bytes_anywhere(packed: Archive, exported: Export, tmp_path: Path) -> None:
    strange = shutil.copytree(exported.directory, tmp_path / "a place, with [brackets]*")
    again = archive(strange, "tiny", HANDLER, tmp_path / "out, again")
    assert (again.sha256, again.size) == (packed.sha256, packed.size)
    assert archive(strange, "tiny", HANDLER, tmp_path / "out, again") == again
    assert load(again.directory, "tiny") == again


def test_the_check_gives_the_smoke_test(packed: Archive, exported: Export) -> None:
    lines: list[str] = []
    smoke = check(packed, exported.directory, log=lines.append)
    assert smoke == json.loads((packed.directory / "smoke.json").read_text())
    assert len(smoke["instances"]) == len(smoke["expected"]) == 2
    assert set(smoke["expected"][0]) == {"label", "score"}
    assert "answers 2 images as the original does" in lines[-1]


def spoiled(packed: Archive, target: Path, **changes: str) -> Archive:
    """A copy of the archive with other content for some files (None removes one)."""
    shutil.copytree(packed.directory, target)
    copy = replace(packed, directory=target, file=target / packed.file.relative_to(packed.directory))
    with zipfile.ZipFile(packed.file) as mar:
        content = {name: mar.read(name) for name in mar.namelist()}
    for name, change in changes.items():
        name = name.replace("__", ".")
        before = content[name].decode()
        after = before.replace(*change.split("→")) if "→" in change else change
        assert after != before
        content[name] = after.encode()
    with zipfile.ZipFile(copy.file, "w") as mar:
        for name, data in content.items():
            mar.writestr(name, data)
    return copy


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "needs transformers": (
        {"image_model__py": "import torch\n→import torch\nimport transformers\n"},
        "does not load in a bare environment: No module named 'transformers' in the serving image",
    ),
    "needs torchvision": (
        {"image_input__py": "import base64\n→import base64\nimport torchvision\n"},
        "No module named 'torchvision'",
    ),
    "does not start": (
        {"image_classifier__py": "        properties = context→        1 / 0\n        properties = context"},
        "fails to load the model: ZeroDivisionError",
    ),
    "other preprocessing": ({"model__json": '"do_normalize": true→"do_normalize": false'}, "the original model with"),
    "raises on every image": (
        {"image_classifier__py": "        started = time→        raise KeyError('x')\n        started = time"},
        "fails on the sample images: KeyError",
    ),
    "blames the server": (
        {"image_classifier__py": 'PredictionException(f"bad input: {error}", 400)→RuntimeError("oops")'},
        r"bad input must be the client's error \(400\); the handler raises RuntimeError: oops",
    ),
    "two classes": (
        {"image_classifier__py": "class ImageClassifier(→class Second: ...\n\n\nclass ImageClassifier("},
        "must define one class, TorchServe's entry; it defines 2",
    ),
}


@pytest.fixture(scope="module")
def verdicts(packed: Archive, exported: Export, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the check says of each spoiled archive. One process imports torch and forks for each of them."""
    folder = tmp_path_factory.mktemp("spoiled")
    cases = {name: str(spoiled(packed, folder / str(n), **REFUSED[name][0]).file) for n, name in enumerate(REFUSED)}
    program = (
        "import contextlib, io, json, os, runpy, sys, torch, numpy, PIL.Image\n"
        "script, runtime, reference, cases = *sys.argv[1:4], json.loads(sys.argv[4])\n"
        "for name, mar in cases.items():\n"
        "    sys.stdout.flush()\n"
        "    if os.fork() == 0:\n"
        "        sys.argv = [script, runtime, mar, reference]\n"
        "        with contextlib.suppress(SystemExit):\n"
        "            runpy.run_path(script, run_name='__main__')\n"
        "        sys.stdout.flush()\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    arguments = [
        bare_check.__file__,
        torchserve.__file__,
        str(exported.directory / "reference.json"),
        json.dumps(cases),
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"TS_SERVICE_ENVELOPE": "kserve", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_that_would_fail_is_found_before_it_is_published(
    name: str, verdicts: dict[str, dict[str, Any]]
) -> None:
    verdict = verdicts[name]
    assert verdict["error"] == "ArchiveError"
    assert re.search(REFUSED[name][1], verdict["message"])
    assert "\n" not in verdict["message"]


def test_an_archive_with_other_labels(packed: Archive, exported: Export, tmp_path: Path) -> None:
    expected = json.loads((exported.directory / "reference.json").read_text())["expected"][0]["label"]
    other = spoiled(packed, tmp_path / "x", model__json=f'"{expected}"→"cow"')
    with pytest.raises(ArchiveError, match=f"answers image 0 with cow .* the original model with {expected}"):
        check(other, exported.directory)


@pytest.mark.parametrize("name", ["Digits", "my_model", "1st", "-x", "x" * 64, "", "a b", "x;rm", "ä"])
def test_a_name_that_kserve_would_refuse(name: str, exported: Export, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no name for a service"):
        archive(exported.directory, name, HANDLER, tmp_path / "x")


def test_what_is_missing_is_named(exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"lacks model.pt: it is no finished export"):
        archive(tmp_path, "tiny", HANDLER, tmp_path / "x")
    with pytest.raises(ArchiveError, match="is no handler"):
        archive(exported.directory, "tiny", tmp_path / "absent.py", tmp_path / "x")
    with pytest.raises(ArchiveError, match="holds no archive of tiny"):
        load(tmp_path, "tiny")


def test_a_sample_that_is_no_image(packed: Archive, exported: Export, tmp_path: Path) -> None:
    reference: dict[str, Any] = json.loads((exported.directory / "reference.json").read_text())
    reference["instances"][0]["data"] = "bm8="
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    with pytest.raises(ArchiveError, match=r"fails on the sample images: PredictionException: .*instances\[0\]"):
        check(packed, tmp_path)
