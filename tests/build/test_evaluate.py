"""Real archives answer labelled images: what is measured is what is served, and nothing is asked twice."""

from __future__ import annotations

import io
import json
import re
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_release.build import archive as archives
from model_release.build.archive import Archive
from model_release.build.evaluate import check, evaluate, lines, summary
from model_release.build.evaluation import answers as asking
from model_release.build.evaluation.answers import Subject, answers, built, labels_of, published, run
from model_release.build.evaluation.images import LabelledImages, from_folder
from model_release.build.evaluation.measures import Answer
from model_release.build.evaluation.picture import confusion_png
from model_release.build.export import Export
from model_release.build.inspection import MAX_TEXT
from model_release.build.runtimes import torchserve
from model_release.errors import ArchiveError, EvaluationFailed, SpecError, VersionDamaged
from model_release.spec import Evaluation
from model_release.store import files
from model_release.store.store import Store

LABELS = ("cat", "dog", "tench, Tinca tinca")  # of the archive `packed`
TURNED = {old: LABELS[(i + 1) % 3] for i, old in enumerate(LABELS)}  # what the archive `turned` says instead


def picture(seed: int, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rewritten(packed: Archive, target: Path, **changes: Callable[[str], str]) -> Archive:
    """A copy of the archive whose .mar has other text in some files; `model__json` is model.json."""
    copy = target / "model-store" / packed.file.name
    copy.parent.mkdir(parents=True)
    (target / "config").mkdir()
    for name in (torchserve.CONFIG, torchserve.METRICS):
        (target / name).write_bytes((packed.directory / name).read_bytes())
    with zipfile.ZipFile(packed.file) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            change = changes.get(name.replace(".", "__"))
            if change:
                assert change(data.decode()) != data.decode()
                data = change(data.decode()).encode()
            new.writestr(name, data)
    return archives.load(target, packed.service)


def labels_changed(labels: list[str]) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), "labels": labels})


@dataclass
class Scene:
    """The archive, one with turned labels, images in the folder that the archive itself would put them into, and its
    answers."""

    packed: Archive
    turned: Archive
    folder: Path
    images: LabelledImages
    answers: dict[str, Answer]
    log: list[str]


@pytest.fixture(scope="module")
def scene(packed: Archive, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("labelled")
    unsorted = {f"{seed}.png": picture(seed, (32, 40, 61)[seed % 3]) for seed in range(14)}
    for name, data in unsorted.items():
        (folder / name).write_bytes(data)
    log: list[str] = []
    found = run(packed.file, [(name, folder / name) for name in unsorted], batch=4, what="it", log=log.append)
    for name in unsorted:
        label = found[name].label or ""
        (folder / label).mkdir(exist_ok=True)
        (folder / name).rename(folder / label / name)
    turned = rewritten(packed, tmp_path_factory.mktemp("turned") / "x", model__json=labels_changed([*TURNED.values()]))
    images = from_folder(folder, "labelled", pytest.fail)
    assert set(images.truth) == {f"{found[name].label}/{name}" for name in unsorted}
    return Scene(packed, turned, folder, images, {f"{a.label}/{name}": a for name, a in found.items()}, log)


class Kept:
    """A store in memory, for what is not about the store."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def read_json(self, key: str) -> tuple[Any, str | None]:
        return self.kept.get(key), None

    def write_json(self, key: str, content: Any, *, if_match: str | None) -> str:
        self.kept[key] = json.loads(json.dumps(content))
        return "tag"


def memory() -> Any:
    return Kept()


def remembered(store: Any, subject: Subject, images: LabelledImages, given: dict[str, Answer]) -> None:
    """The store holds these answers of the archive, so that no process is started for them."""
    content = {"format": 1, "archive": subject.sha256, "images": images.digest}
    content["answers"] = {name: [a.label, a.score, a.fault] for name, a in given.items()}
    store.write_json(f"evaluations/{subject.sha256[:16]}-{images.digest[:16]}.json", content, if_match=None)


def turn(given: dict[str, Answer]) -> dict[str, Answer]:
    return {name: replace(a, label=TURNED[str(a.label)]) for name, a in given.items()}


def evaluated(scene: Scene, stable: Any, store: Any = None, **limits: Any) -> tuple[dict[str, Any], bytes]:
    store = store or memory()
    remembered(store, built(scene.packed), scene.images, scene.answers)
    remembered(store, built(scene.turned), scene.images, turn(scene.answers))
    spec = Evaluation(data="labelled", **limits)
    return evaluate(spec, scene.images, built(scene.packed), stable, store, log=scene.log.append)


def test_another_precision_is_held_to_float32_on_the_same_images(scene: Scene) -> None:
    """All three labels are turned, so float32 is right and this is wrong on every image, whatever is stable."""
    store = memory()
    remembered(store, built(scene.packed), scene.images, scene.answers)
    remembered(store, built(scene.turned), scene.images, turn(scene.answers))
    limits = Evaluation(data="labelled", max_regressions=0.1)
    exact = replace(built(scene.packed), labels=built(scene.turned).labels)

    def held(float32: Subject | str | None) -> dict[str, Any]:
        found, _ = evaluate(
            limits, scene.images, built(scene.turned), "nothing is stable", store, float32=float32, log=lambda _: None
        )
        return found

    found = held(exact)
    assert [gate["passed"] for gate in found["gates"]] == [None, False]
    with pytest.raises(
        EvaluationFailed, match=r"regressions beside float32 are 100 % \(images that only float32 answers"
    ):
        check(found)
    assert summary(found)["float32"] == {"archive": scene.packed.sha256, "accuracy": 1.0, "regressions": 1.0}
    assert any(line.startswith("beside the same checkpoint in float32 (accuracy 100 %): ") for line in lines(found))
    gone = held("it is gone")
    assert [gate["passed"] for gate in gone["gates"]] == [None, None]
    assert gone["gates"][1]["sentence"] == "regressions beside float32 (at most 10 %) were not counted: it is gone"
    assert "not compared with float32: it is gone" in lines(gone)
    assert summary(gone)["float32"] == {"archive": None, "accuracy": None, "regressions": None}
    assert "float32" not in held(None)


def test_the_handlers_own_answers_one_by_one_and_in_batches(scene: Scene, exported: Export, tmp_path: Path) -> None:
    import torch
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    description = json.loads((exported.directory / "model.json").read_text())
    options = {k: v for k, v in description["preprocessing"].items() if k in ("size", "image_mean", "image_std")}
    processor, model = ViTImageProcessorPil(**options), torch.jit.load(exported.directory / "model.pt")
    for name, answer in scene.answers.items():
        with Image.open(scene.folder / name) as image:
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        score, label = model(pixels).softmax(-1)[0].max(-1)
        assert answer.label == LABELS[int(label)]
        assert answer.score == pytest.approx(float(score), abs=2e-6)
    assert "14 images" in scene.log[0]
    assert "images/s" in scene.log[-1]


def test_what_is_unreadable_is_refused_alone_and_what_the_model_fails_on_fails_alone(
    scene: Scene, tmp_path: Path
) -> None:
    as_cut = rewritten(
        scene.packed, tmp_path / "x", model__json=lambda text: text.replace('"do_resize": true', '"do_resize": false')
    )
    content = {"a.png": picture(1), "b.png": b"no image", "c.png": picture(2, 40), "d.png": b"", "e.png": picture(3)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    found = run(as_cut.file, [(name, tmp_path / name) for name in content], batch=5, what="it", log=scene.log.append)
    assert list(found) == list(content)
    assert [found[name].label is None for name in content] == [False, True, True, True, False]
    assert found["b.png"].fault.startswith("refused: bad input: 8 bytes that are no image")
    assert found["d.png"].fault == "refused: bad input: empty image"
    assert re.match(r"the model failed: .*Error: ", found["c.png"].fault)


@pytest.mark.parametrize("spoil", ["handler", "images"])
def test_an_archive_that_answers_nothing(scene: Scene, tmp_path: Path, spoil: str) -> None:
    mar, name = scene.packed.file, next(iter(scene.images.truth))
    if spoil == "handler":
        mar = rewritten(
            scene.packed,
            tmp_path / "x",
            image_input__py=lambda text: text.replace("import base64\n", "import absent\n"),
        ).file
    (tmp_path / "a.png").write_bytes(b"no image" if spoil == "images" else (scene.folder / name).read_bytes())
    expected = {
        "handler": "the archive's handler does not load: ModuleNotFoundError: No module named 'absent'",
        "images": "it has no answer to any of the images (1); the first: refused: bad input: 8 bytes that are no image",
    }
    with pytest.raises(ArchiveError, match=re.escape(expected[spoil])):
        run(mar, [("a.png", tmp_path / "a.png")], batch=4, what="it", log=scene.log.append)


def test_an_evaluation_beside_the_stable_version(scene: Scene) -> None:
    found, png = evaluated(scene, built(scene.turned), min_accuracy=0.99, max_regressions=0.01)
    assert found["candidate"]["accuracy"] == 1
    assert found["stable"]["accuracy"] == 0
    assert found["comparison"]["mcnemar"] == {"worse": 0, "better": 14, "p": pytest.approx(2 / 2**14)}
    assert (found["comparison"]["churn"], found["comparison"]["negative_flips"]["count"]) == (1, 0)
    assert found["passed"] is True
    check(found)
    assert found["data"] == {"uri": "labelled", "digest": scene.images.digest, "digest_of": "contents", "images": 14}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 400
    assert len(png) < 60_000


def test_gates_that_fail_are_named_in_one_sentence(scene: Scene) -> None:
    store, version = memory(), built(scene.turned)
    remembered(store, version, scene.images, turn(scene.answers))
    remembered(store, built(scene.packed), scene.images, scene.answers)
    limits = Evaluation(data="labelled", min_accuracy=0.9, max_regressions=0.05)
    found, _ = evaluate(limits, scene.images, version, built(scene.packed), store, log=scene.log.append)
    assert found["passed"] is False
    with pytest.raises(EvaluationFailed) as failure:
        check(found)
    assert str(failure.value) == (
        f"version {version.version} on 14 images of labelled: accuracy is 0 %, below the limit of 90 %; "
        "regressions are 100 % (images that only stable answers right: 14), above the limit of 5 %"
    )
    told = "\n".join(lines(found))
    assert "gate FAILED: accuracy is 0 %" in told
    assert "gates passed: 0 of 2" in told
    assert "right only before 14 (100 %), McNemar's exact test p = 0.00012; 100 % of the answers differ" in told
    flip = found["comparison"]["negative_flips"]["images"][0]
    assert flip == {"name": flip["name"], "label": flip["was"], "was": flip["was"], "is": TURNED[flip["was"]]}
    said = summary(found)
    assert (said["accuracy"], said["regressions"], said["stable"], said["passed"]) == (
        *(0, 1, built(scene.packed).version),
        False,
    )
    assert len(json.dumps(said)) < 1000


def test_a_comparison_that_is_skipped_says_why(scene: Scene, tmp_path: Path) -> None:
    ages = ["0-2", *LABELS[1:]]
    other = built(rewritten(scene.packed, tmp_path / "x", model__json=labels_changed(ages)))
    away = Subject("0" * 16, "f" * 64, LABELS, lambda _: tmp_path / "absent.mar")
    for stable, reason in (
        ("there is no service yet", "there is no service yet"),
        (other, f"the stable version {other.version} has other labels: 0-2 only in the old; cat only in the new"),
        (built(scene.packed), f"version {built(scene.packed).version} is the stable version itself"),
        (away, f"the stable version {'0' * 16} gives no answers here: the archive's handler does not load: "),
    ):
        found, _ = evaluated(scene, stable, max_regressions=0.1)
        assert found["comparison"]["skipped"].startswith(reason)
        assert found["stable"] is None
        assert found["comparison"]["mcnemar"] is None
        assert [gate["passed"] for gate in found["gates"]] == [None]
        assert any(line.startswith(f"not compared with a stable version: {reason}") for line in lines(found))
        check(found)


def test_images_that_do_not_fit_are_refused_before_anything_is_asked(scene: Scene) -> None:
    never = Subject("0" * 16, "f" * 64, ("cat", "dog"), lambda _: pytest.fail("it was asked"))
    spec = Evaluation(data="labelled", min_recall={"cow": 0.5})
    with pytest.raises(SpecError, match="which the model does not know; it knows cat, dog"):
        evaluate(spec, scene.images, never, "none", memory(), log=scene.log.append)
    with pytest.raises(SpecError, match="min_recall names 'cow', of which labelled has no images"):
        evaluate(spec, scene.images, replace(never, labels=LABELS), "none", memory(), log=scene.log.append)


def test_a_log_shows_what_got_no_answer_and_the_worst_labels(scene: Scene) -> None:
    store, subject = memory(), built(scene.packed)
    one = next(iter(scene.answers))
    broken = {**scene.answers, one: Answer(None, fault="refused: bad input: empty image")}
    remembered(store, subject, scene.images, broken)
    found, _ = evaluate(Evaluation(data="x"), scene.images, subject, "none yet", store, log=scene.log.append)
    told = lines(found)
    assert f"images without an answer, counted as wrong: 1, such as {one} (refused: bad input: empty image)" in told
    assert found["candidate"]["accuracy"] == 13 / 14
    table = [line for line in told if re.search(r"\d+  +\d+\.\d %$", line)]
    assert len(table) == len(scene.images.support)


# In the store


@pytest.fixture
def store(s3: Any) -> Store:
    return Store(s3.client, f"s3://models/{uuid.uuid4().hex}/")


def test_answers_are_kept_and_nothing_is_asked_twice(
    scene: Scene, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def once(mar: Path, images: Any, **_: Any) -> dict[str, Answer]:
        asked.append(mar.name)
        return scene.answers

    monkeypatch.setattr(asking, "run", once)
    subject = built(scene.packed)
    for _ in range(2):
        given = answers(subject, scene.images, store, batch=4, scratch=tmp_path, log=scene.log.append)
        assert given == scene.answers
    key = f"evaluations/{subject.sha256[:16]}-{scene.images.digest[:16]}.json"
    assert scene.log[-1].endswith(f"are in the store: {key}")
    assert len(asked) == 1
    # Other images, another archive or another form: asked for anew.
    kept, tag = store.read_json(key)
    store.write_json(key, {**kept, "format": 0}, if_match=tag)
    answers(subject, scene.images, store, batch=4, scratch=tmp_path, log=scene.log.append)
    answers(subject, replace(scene.images, digest="e" * 64), store, batch=4, scratch=tmp_path, log=scene.log.append)
    answers(replace(subject, sha256="d" * 64), scene.images, store, batch=4, scratch=tmp_path, log=scene.log.append)
    assert len(asked) == 4
    assert store.read_json(key)[0]["format"] == 1


def test_a_race_for_the_same_answers_is_lost_in_peace(
    scene: Scene, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = built(scene.packed)

    def meanwhile(*_: Any, **__: Any) -> dict[str, Answer]:
        remembered(store, subject, scene.images, scene.answers)
        return scene.answers

    monkeypatch.setattr(asking, "run", meanwhile)
    assert answers(subject, scene.images, store, batch=4, scratch=tmp_path, log=scene.log.append) == scene.answers
    assert scene.log[-1].startswith("the answers were not kept")


def test_a_build_is_called_what_its_version_will_be_called(scene: Scene, store: Store, tmp_path: Path) -> None:
    directory = scene.packed.directory
    (directory / "smoke.json").write_text("{}")
    version = store.publish(directory, {"labels": list(LABELS), "service": "tiny"})
    subject, fetched = built(scene.packed), published(version, store._client)
    assert (subject.version, subject.sha256, subject.labels) == (version.name, fetched.sha256, fetched.labels)
    mar = fetched.bring(tmp_path)
    assert files.sha256(mar) == scene.packed.sha256
    assert labels_of(mar) == LABELS
    changed = {path: {**about, "sha256": "0" * 64} for path, about in version.files.items()}
    with pytest.raises(VersionDamaged, match=r"is not what its version\.json says"):
        published(replace(version, files=changed), store._client).bring(tmp_path)
    with pytest.raises(VersionDamaged, match="has 1 archives and 0 labels"):
        published(replace(version, metadata={}), store._client)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match=r"x.mar has no model.json with labels"):
        labels_of(tmp_path / "x.mar")


def test_an_archive_whose_model_json_would_fill_the_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", json.dumps({"labels": ["x" * MAX_TEXT]}))
    with pytest.raises(ArchiveError, match=r"x.mar has no model.json with labels"):
        labels_of(tmp_path / "x.mar")


# The picture


@pytest.mark.parametrize("count", [2, 10, 30, 120])
def test_the_picture_stays_small_and_equal(count: int) -> None:
    labels = [f"a label of ${number}$ and a long name" for number in range(count)]
    confusion = [
        [5 if row == column else int((row + column) % 7 == 0) for column in range(count)] for row in range(count)
    ]
    png = confusion_png(labels, confusion, "0123456789abcdef: 91 % of 400 images right")
    assert confusion_png(labels, confusion, "0123456789abcdef: 91 % of 400 images right") == png
    with Image.open(io.BytesIO(png)) as image:
        assert 400 <= image.width <= 1250
        dark = np.asarray(image.convert("L"), float)
    assert dark.std() > 5
    assert len(png) < 120_000
