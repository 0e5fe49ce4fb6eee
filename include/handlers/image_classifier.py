"""The TorchServe handler: one for every image classifier that this project exports.

The archive holds `model.pt` (TorchScript), `model.json` (labels, input size, preprocessing) and this file with
`image_input.py` beside it. Needs torch, Pillow and NumPy.

Requests: an image's own bytes, base64 text, or KServe V1 `{"instances": [{"data": "<base64>"}, …]}`, with
TorchServe's KServe envelope (`TS_SERVICE_ENVELOPE=kserve`, as KServe runs it) and without. All images of a
request go through the model in one forward pass.

Answers: for each image the `top_k` likeliest labels, `[{"label": "cat", "score": 0.93}, …]`, best first. Scores
are probabilities: softmax, or sigmoid for a multi-label model, as `transformers.pipeline` chooses.

Whose error it is: input that is no image is the client's (400 that names row and reason); everything else,
above all a model that fails on a perfectly good image, is the server's (503) with a line in the log. A canary
is judged on the latter, so the two must never be mixed up.

TorchServe takes the one class of this module as the handler: there must be no second one here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# TorchServe puts the archive's own folder on sys.path.
from image_input import BadInput, read_body, read_instances  # type: ignore[import-not-found]
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException

logger = logging.getLogger(__name__)

# A TorchScript model's first calls are up to 200 times slower than the rest, and so is the first call with a
# new batch size: without these the first users of a canary would wait for the compiler.
WARM_UP_BATCHES = (1, 1, 1, 2, 2)


class ImageClassifier:
    """What TorchServe calls: `initialize` once in each worker, `handle` for each batch of requests."""

    def initialize(self, context: Any) -> None:
        """Loads model and labels from the archive's folder and warms the model up.

        An exception here keeps the worker, and so the revision, from ever being ready.
        """
        properties = context.system_properties
        folder = Path(properties["model_dir"])
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.labels: list[str] = description["labels"]
        self.input_size: tuple[int, int] = (description["input"]["height"], description["input"]["width"])
        self.preprocessing: dict[str, Any] = description["preprocessing"]
        self.sigmoid = description["activation"] == "sigmoid"
        self.top_k = min(int(description["top_k"]), len(self.labels))
        gpu = properties.get("gpu_id")
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        self.model = torch.jit.load(folder / "model.pt", map_location=self.device).eval()
        self.enveloped = bool(os.environ.get("TS_SERVICE_ENVELOPE"))
        if self.enveloped:
            _blame_unreadable_bodies_on_the_client()
        for batch in WARM_UP_BATCHES:
            self._logits(np.zeros((batch, 3, *self.input_size), np.float32))
        logger.info("ready: %d labels, input %dx%d, on %s", len(self.labels), *reversed(self.input_size), self.device)

    def handle(self, data: Any, context: Any) -> list[Any]:
        """One answer for each row of `data`.

        With the envelope the rows are the instances of a single request, which is refused as a whole (TorchServe
        knows one status for it). Without, each row is a request of its own, refused on its own.
        """
        started = time.perf_counter()
        answers = self._instances(data) if self.enveloped else self._requests(data, context)
        self._count(answers, time.perf_counter() - started, context)
        return answers

    def _instances(self, data: Any) -> list[Any]:
        try:
            return self._classify(read_instances(data, self.preprocessing))
        except BadInput as error:
            raise PredictionException(f"bad input: {error}", 400) from None

    def _requests(self, data: Any, context: Any) -> list[Any]:
        answers: list[Any] = [None] * len(data)
        pixels: list[npt.NDArray[np.float32]] = []
        spans: dict[int, tuple[int, int, bool]] = {}
        for row, request in enumerate(data):
            context.set_response_content_type(row, "application/json")
            body = request.get("data") if request.get("data") is not None else request.get("body")
            try:
                inputs, v1 = read_body(body, self.preprocessing)
            except BadInput as error:
                context.set_response_status(400, "Bad Request", row)
                answers[row] = {"error": f"bad input: {error}"}
                continue
            spans[row] = (len(pixels), len(pixels) + len(inputs), v1)
            pixels += inputs
        predictions = self._classify(pixels)
        for row, (first, last, v1) in spans.items():
            answers[row] = {"predictions": predictions[first:last]} if v1 else predictions[first]
        return answers

    def _classify(self, pixels: list[npt.NDArray[np.float32]]) -> list[list[dict[str, Any]]]:
        """The best labels of each input [3, height, width]. One forward pass for each size there is: with a
        processor that resizes, as nearly all do, that is one."""
        answers: list[Any] = [None] * len(pixels)
        sizes = {array.shape: None for array in pixels}
        for shape in sizes:
            rows = [row for row, array in enumerate(pixels) if array.shape == shape]
            logits = self._logits(np.stack([pixels[row] for row in rows]))
            scores, classes = (logits.sigmoid() if self.sigmoid else logits.softmax(-1)).topk(self.top_k)
            for row, best, which in zip(rows, scores.tolist(), classes.tolist(), strict=True):
                answers[row] = [
                    {"label": self.labels[label], "score": round(score, 6)}
                    for score, label in zip(best, which, strict=True)
                ]
        return answers

    def _logits(self, batch: npt.NDArray[np.float32]) -> torch.Tensor:
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self.model(torch.from_numpy(batch).to(self.device)).float()
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            # TorchScript's messages end with the error, behind the source that raised it.
            reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
            height, width = batch.shape[2:]
            logger.error(
                "the model failed, the client is not to blame: %d image(s) of %dx%d after preprocessing "
                "(do_resize=%s), model exported for %dx%d: %s",
                *(len(batch), width, height, self.preprocessing["do_resize"], *reversed(self.input_size)),
                reason,
            )
            raise
        if not torch.isfinite(logits).all():
            logger.error("the model answered with NaN or infinity for a batch of %d", len(batch))
            raise RuntimeError("the model answered with NaN or infinity")
        return logits

    @staticmethod
    def _count(answers: list[Any], seconds: float, context: Any) -> None:
        """Emits what `config/metrics.yaml` declares. TorchServe appends ModelName and Level to the dimensions."""
        tops: list[list[dict[str, Any]]] = []
        for answer in answers:
            if isinstance(answer, list):
                tops.append(answer)
            elif "predictions" in answer:
                tops += answer["predictions"]
        if not tops or context.metrics is None:
            return
        context.metrics.add_metric(
            "image_classifier_request_seconds",
            seconds,
            "s",
            dimensions=[],
            metric_type=MetricTypes.HISTOGRAM,
        )
        for label, count in Counter(top[0]["label"] for top in tops).items():
            context.metrics.add_metric(
                "image_classifier_predictions_total",
                count,
                "Count",
                # Metrics travel as log lines, in which these characters have a meaning.
                dimensions=[Dimension("label", re.sub(r"[,:|#\[\]\s]+", "_", label))],
            )


def _blame_unreadable_bodies_on_the_client() -> None:
    """TorchServe's envelope reads the body before a handler can, and answers 503 where it is no V1 JSON. This
    makes it a 400."""
    from ts.torch_handler.request_envelope.kserve import KServeEnvelope

    original = KServeEnvelope.parse_input

    def parse_input(self: Any, data: Any) -> Any:
        try:
            return original(self, data)
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise PredictionException('bad input: the body is not {"instances": […]} in JSON', 400) from None

    KServeEnvelope.parse_input = parse_input
