"""The handler inside TorchServe's own Service and envelope, with a model whose answers can be told beforehand."""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ts.context import Context, RequestProcessor
from ts.torch_handler.request_envelope.kserve import KServeEnvelope
from ts.torch_handler.request_envelope.kservev2 import KServev2Envelope
from ts.utils.util import PredictionException

LABELS = ["red", "green", "blue: the sea, the sky"]
OPTIONS = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 8, "width": 8},
    "resample": 2,
    "crop_pct": None,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
    "image_mean": None,
    "image_std": None,
}


class MeanColour(torch.nn.Module):
    """Logits are ten times the mean of each channel; takes 8x8 and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(3, 8, 8))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * self.weights).mean((-1, -2)) * 10


class NotANumber(MeanColour):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels * self.weights).mean((-1, -2)) / pixels.sum().clamp(max=0)


class Metrics:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, list[tuple[str, str]], str]] = []

    def add_metric(self, name: str, value: float, unit: str, dimensions: Any, metric_type: Any = None) -> None:
        kind = metric_type.value if metric_type else "counter"
        self.seen.append((name, value, [(d.name, d.value) for d in dimensions], kind))


class Served:
    """A loaded handler; `ask` goes the way of TorchServe's Service, envelope included."""

    def __init__(self, folder: Path, enveloped: bool) -> None:
        module = importlib.import_module("image_classifier")
        manifest = {"model": {"modelName": "m", "modelVersion": "1.0", "serializedFile": "model.pt"}}
        self.context = Context("m", str(folder), manifest, 1, None, "0.12.0", metrics=Metrics())
        self.handler = module.ImageClassifier()
        self.handler.initialize(self.context)
        self._entry = KServeEnvelope(self.handler.handle).handle if enveloped else self.handler.handle

    def ask(self, *bodies: Any) -> list[Any]:
        self.context.request_processor = [RequestProcessor({}) for _ in bodies]
        return list(self._entry([{"body": body} for body in bodies], self.context))

    def statuses(self) -> list[int]:
        return [request.get_response_status_code() for request in self.context.request_processor]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    original = dict(vars(KServeEnvelope)), dict(vars(KServev2Envelope))

    def load(
        enveloped: bool, model: type[torch.nn.Module] = MeanColour, activation: str = "softmax", **options: Any
    ) -> Served:
        if enveloped:
            monkeypatch.setenv("TS_SERVICE_ENVELOPE", "kserve")
        else:
            monkeypatch.delenv("TS_SERVICE_ENVELOPE", raising=False)
        torch.jit.trace(model().eval(), torch.rand(2, 3, 8, 8)).save(tmp_path / "model.pt")
        description = {
            "labels": LABELS,
            "input": {"height": 8, "width": 8},
            "preprocessing": {**OPTIONS, **options},
            "activation": activation,
            "top_k": 5,
        }
        (tmp_path / "model.json").write_text(json.dumps(description))
        return Served(tmp_path, enveloped)

    yield load
    for envelope, before in zip((KServeEnvelope, KServev2Envelope), original, strict=True):
        envelope.parse_input, envelope.format_output = before["parse_input"], before["format_output"]


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE = picture((255, 0, 0)), picture((0, 255, 0), (31, 7)), picture((0, 0, 255), (9, 90))


NESTED = b'{"instances": ' + b"[" * 100_000


def deep(levels: int) -> object:
    """An instance within an instance, so many times; nothing in the innermost."""
    value: object = ""
    for _ in range(levels):
        value = {"data": value}
    return value


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def tops(predictions: list[list[dict[str, Any]]]) -> list[str]:
    return [labels[0]["label"] for labels in predictions]


def test_instances_through_the_envelope(serve: Any) -> None:
    served = serve(True)
    (answer,) = served.ask({"instances": [{"data": text(RED)}, {"b64": text(BLUE)}, {"image": {"b64": text(GREEN)}}]})
    assert tops(answer["predictions"]) == [LABELS[0], LABELS[2], LABELS[1]]
    scores = np.array([[label["score"] for label in labels] for labels in answer["predictions"]])
    assert scores.shape == (3, 3)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(scores[0], torch.tensor([10.0, 0, 0]).softmax(0), atol=1e-5)
    assert served.statuses() == [200]


def test_a_multi_label_model_gives_each_label_its_own_probability(serve: Any) -> None:
    (answer,) = serve(True, activation="sigmoid").ask({"instances": [{"data": text(picture((255, 255, 0)))}]})
    scores = {label["label"]: label["score"] for label in answer["predictions"][0]}
    sure = float(torch.tensor(10.0).sigmoid())
    assert scores == pytest.approx({LABELS[0]: sure, LABELS[1]: sure, LABELS[2]: 0.5}, abs=1e-5)


@pytest.mark.parametrize(("cores", "expected"), [(1, [12]), (2, [6, 6])])
def test_all_instances_go_through_the_model_at_once(cores: int, expected: list[int], serve: Any) -> None:
    served = serve(True)
    served.handler.deal_out_to(cores)
    batches: list[int] = []
    model = served.handler.model
    served.handler.model = lambda batch: batches.append(len(batch)) or model(batch)
    served.ask({"instances": [{"data": text(image)} for image in (RED, GREEN, BLUE) * 4]})
    assert batches == expected


def test_rows_without_envelope_stand_and_fall_alone(serve: Any) -> None:
    served = serve(False)
    answers = served.ask(
        RED, b"garbage", text(GREEN), {"instances": [{"data": text(BLUE)}, text(RED)]}, {"data": text(RED)}
    )
    assert served.statuses() == [200, 400, 200, 200, 200]
    assert answers[1]["error"].startswith("bad input: 7 bytes that are no image; known are PNG, JPEG, ")
    assert tops([answers[0], answers[2], answers[4]]) == [LABELS[0], LABELS[1], LABELS[0]]
    assert tops(answers[3]["predictions"]) == [LABELS[2], LABELS[0]]
    assert served.context.get_response_content_type(0) == "application/json"


def test_only_bad_rows(serve: Any) -> None:
    served = serve(False)
    served.ask(b"x", b"", NESTED, deep(2000))
    assert served.statuses() == [400] * 4
    assert served.context.metrics.seen == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"instances": [{"data": text(RED)}, {"data": "bm8="}]}, r"instances\[1\]: 2 bytes that are no image"),
        ({"instances": []}, "at least one instance"),
        ({}, "no image under any of data, b64"),
        (b"no json", "7 bytes that are no image"),
        (b"[1, 2]", "the body is a list"),
        (b"", "empty image"),
        (b"\xff\xfe\x00", "begins like JSON and is none"),
        (NESTED, "begins like JSON and is none"),
        ({"instances": [deep(2000)]}, r"instances\[0\]: empty image"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (bytes, str)) else "object",
)
def test_bad_input_under_the_envelope_is_the_clients(serve: Any, body: Any, reason: str) -> None:
    with pytest.raises(PredictionException, match=reason) as refusal:
        serve(True).ask(body)
    assert refusal.value.error_code == 400


def test_rows_of_a_batch_stand_and_fall_alone_under_the_envelope(serve: Any) -> None:
    """One that is no image, one that the network cannot take, and two good ones, as TorchServe batches them."""
    served = serve(True, do_resize=False)
    (alone,) = served.ask({"instances": [{"data": text(RED)}]})
    served.context.metrics.seen.clear()
    good = {"instances": [{"data": text(RED)}]}
    answers = served.ask(good, b"garbage", {"instances": [{"data": text(BLUE)}]}, {**good, "top_k": 1})
    assert served.statuses() == [200, 400, 503, 200]
    assert answers[0] == alone
    assert answers[3] == {"predictions": [alone["predictions"][0][:1]]}
    assert answers[1]["message"].startswith("bad input: 7 bytes that are no image")
    assert answers[2] == {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}
    seen = [name for name, *_ in served.context.metrics.seen]
    assert seen.count("image_classifier_request_seconds") == 2, "one for each request that was answered"


@pytest.mark.parametrize("enveloped", [True, False])
def test_a_model_that_fails_on_a_good_image_is_the_servers(
    serve: Any, enveloped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(enveloped, do_resize=False)
    served.ask({"instances": [{"data": text(RED)}]})
    with pytest.raises(RuntimeError), caplog.at_level(logging.ERROR):
        served.ask({"instances": [{"data": text(RED)}, {"data": text(BLUE)}]})
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "1 image(s) of 9x90 after preprocessing (do_resize=False), model exported for 8x8" in record.getMessage()
    assert "must match" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_nan_is_the_servers_error_and_stops_the_worker_at_load(serve: Any) -> None:
    with pytest.raises(RuntimeError, match="NaN"):
        serve(True, model=NotANumber)


def test_a_damaged_model_never_gets_ready(serve: Any, tmp_path: Path) -> None:
    served = serve(True)
    (tmp_path / "model.pt").write_bytes(b"damaged")
    with pytest.raises(RuntimeError):
        served.handler.initialize(served.context)


def test_what_does_not_run_on_the_gpu_is_served_on_the_cpu(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch without CUDA refuses the device itself, with the error that a constant on the CPU gives."""
    served = serve(False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        served.handler._load(tmp_path, 0)
    assert served.handler.device == torch.device("cpu")
    assert "the model does not run on cuda:0, so it is served on the CPU: " in caplog.text
    assert tops(served.ask(RED)) == [LABELS[0]]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
    ids=str,
)
def test_t2_threads_are_the_cpus_of_the_pod(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("image_model")
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(64)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert module.cpus(tmp_path) == expected


def test_metrics_have_seconds_and_labels_that_a_log_line_can_carry(serve: Any) -> None:
    served = serve(True)
    served.ask({"instances": [{"data": text(image)} for image in (RED, BLUE, BLUE)]})
    duration, *counts = served.context.metrics.seen
    assert duration[0] == "image_classifier_request_seconds"
    assert (duration[2], duration[3]) == ([], "histogram")
    assert 0 < duration[1] < 5
    assert counts == [
        ("image_classifier_predictions_total", 1, [("label", "red")], "counter"),
        ("image_classifier_predictions_total", 2, [("label", "blue_the_sea_the_sky")], "counter"),
        ("image_classifier_confidence_total", 3, [("below", "1.00")], "counter"),
        ("image_classifier_certainty_total", 3, [("below", "1.00")], "counter"),
    ]


@pytest.mark.parametrize(
    ("score", "below"),
    [(0.0, "0.05"), (0.049999, "0.05"), (0.05, "0.10"), (0.5, "0.55"), (0.85, "0.90"), (1.0, "1.00")],
)
def test_how_sure_the_model_is_counts_in_twentieths(serve: Any, score: float, below: str) -> None:
    """A score on an edge is not below it."""
    served = serve(True)
    served.context.metrics.seen.clear()
    answer = importlib.import_module("image_model").Labels([{"label": "red", "score": score}])
    answer.certainty = score - 1e-9
    served.handler._count([answer], 0.1, served.context)
    assert served.context.metrics.seen[-2:] == [
        (f"image_classifier_{name}_total", 1, [("below", below)], "counter") for name in ("confidence", "certainty")
    ]


def test_torchserve_finds_exactly_one_class() -> None:
    from ts.utils.util import list_classes_from_module

    module = importlib.import_module("image_classifier")
    assert list_classes_from_module(module) == [module.ImageClassifier]
