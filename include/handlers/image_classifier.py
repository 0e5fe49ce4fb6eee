"""The TorchServe handler: one for every image classifier that this project exports.

The archive holds `model.pt` (TorchScript), `model.json` (labels, input size, preprocessing) and this file with
`image_*.py` beside it: requests, files, headers, pixels. Needs torch, Pillow and NumPy.

Requests: what `image_requests` reads, with TorchServe's envelopes (`TS_SERVICE_ENVELOPE=kserve` or `kservev2`, as
KServe runs it) and without, alike. All images of a request go through the model in one forward pass.

Answers: for each image the `top_k` likeliest labels, `[{"label": "cat", "score": 0.93}, …]`, best first, in the shape
of the request's protocol. Scores are probabilities: softmax, or sigmoid for a multi-label model, as
`transformers.pipeline` chooses.

Whose error it is: input that is no image is the client's (400 that names row and reason); everything else,
above all a model that fails on a perfectly good image, is the server's (503) with a line in the log. A canary
is judged on the latter, so the two must never be mixed up.

TorchServe takes the one class of this module as the handler: there must be no second one here.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
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
from image_input import BadInput  # type: ignore[import-not-found]
from image_requests import Model, Request, read_request  # type: ignore[import-not-found]
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
        told = context.manifest["model"]
        self.described = Model(
            *(told["modelName"], told.get("modelVersion", "")),
            *(self.preprocessing, self.input_size, description["activation"]),
        )
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cpus())
        self.enveloped = bool(os.environ.get("TS_SERVICE_ENVELOPE"))
        if self.enveloped:
            _open_envelopes()
        self._load(folder / "model.pt", properties.get("gpu_id"))
        logger.info(
            "ready: %d labels, input %dx%d, on %s, %d threads",
            *(len(self.labels), *reversed(self.input_size), self.device, torch.get_num_threads()),
        )

    def _load(self, file: Path, gpu: Any) -> None:
        """Loads and warms up, on the GPU where there is one and the model runs on it: some (Swin, BEiT) have constants
        that were traced on a CPU and stay there."""
        if gpu is not None and torch.cuda.is_available():
            try:
                self._load_on(torch.device(f"cuda:{gpu}"), file)
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
                logger.warning("the model does not run on cuda:%s, so it is served on the CPU: %s", gpu, reason)
            else:
                return
        self._load_on(torch.device("cpu"), file)

    def _load_on(self, device: torch.device, file: Path) -> None:
        self.device = device
        self.model = torch.jit.load(file, map_location=device).eval()
        for batch in WARM_UP_BATCHES:
            self._logits(np.zeros((batch, 3, *self.input_size), np.float32))

    def handle(self, data: Any, context: Any) -> list[Any]:
        """One answer for each row of `data`, a request each, refused on its own: with status 400 where the answer may
        carry one, which under an envelope is for TorchServe to give, and so to the whole batch."""
        started = time.perf_counter()
        answers: list[Any] = [None] * len(data)
        requests: dict[int, Request] = {}
        for row, fields in enumerate(data):
            try:
                requests[row] = read_request(fields, self.described)
            except BadInput as error:
                if self.enveloped:
                    raise PredictionException(f"bad input: {error}", 400) from None
                context.set_response_status(400, "Bad Request", row)
                answers[row] = {"error": f"bad input: {error}"}
            if not self.enveloped:
                context.set_response_content_type(row, "application/json")
        wanted = [min(request.top_k or self.top_k, len(self.labels)) for request in requests.values()]
        pixels = [one for request in requests.values() for one in request.inputs]
        predictions = self._classify(pixels, max(wanted, default=1))
        first = 0
        for (row, request), top_k in zip(requests.items(), wanted, strict=True):
            last = first + len(request.inputs)
            answers[row] = request.answer([labels[:top_k] for labels in predictions[first:last]])
            first = last
        self._count(predictions, time.perf_counter() - started, context)
        return answers

    def _classify(self, pixels: list[npt.NDArray[np.float32]], top_k: int) -> list[list[dict[str, Any]]]:
        """The best labels of each input [3, height, width]. One forward pass for each size there is: with a
        processor that resizes, as nearly all do, that is one."""
        answers: list[Any] = [None] * len(pixels)
        sizes = {array.shape: None for array in pixels}
        for shape in sizes:
            rows = [row for row, array in enumerate(pixels) if array.shape == shape]
            logits = self._logits(np.stack([pixels[row] for row in rows]))
            scores, classes = (logits.sigmoid() if self.sigmoid else logits.softmax(-1)).topk(top_k)
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
    def _count(predictions: list[list[dict[str, Any]]], seconds: float, context: Any) -> None:
        """Emits what `config/metrics.yaml` declares. TorchServe appends ModelName and Level to the dimensions."""
        if not predictions or context.metrics is None:
            return
        context.metrics.add_metric(
            "image_classifier_request_seconds",
            seconds,
            "s",
            dimensions=[],
            metric_type=MetricTypes.HISTOGRAM,
        )
        for label, count in Counter(top[0]["label"] for top in predictions).items():
            context.metrics.add_metric(
                "image_classifier_predictions_total",
                count,
                "Count",
                # Metrics travel as log lines, in which these characters have a meaning.
                dimensions=[Dimension("label", re.sub(r"[,:|#\[\]\s]+", "_", label))],
            )
        # How sure the model was, in twentieths: a counter of each, for a histogram's edges are not ours to choose.
        for band, count in Counter(min(int(20 * top[0]["score"] + 1e-9), 19) for top in predictions).items():
            context.metrics.add_metric(
                "image_classifier_confidence_total",
                count,
                "Count",
                dimensions=[Dimension("below", f"{(band + 1) / 20:.2f}")],
            )


def cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many CPUs this container may use, rounded up: what its cgroup (version 2 or 1) says, and no more than there
    are. torch takes all of the node's, and the limit of a pod then stops them most of the time."""
    there = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for file in files for word in (cgroup / file).read_text().split())
        except (OSError, ValueError):  # no such version, or "max"
            continue
        if quota > 0 and period > 0:
            return max(1, min(there, math.ceil(quota / period)))
    return there


def _open_envelopes() -> None:
    """TorchServe's envelopes read the body before a handler can: they answer 503 where it is not quite theirs, drop
    settings in silence, and flatten a V2 answer. This lets them pass on what comes and what goes."""
    for module, name in (("kserve", "KServeEnvelope"), ("kservev2", "KServev2Envelope")):
        try:
            envelope = getattr(importlib.import_module(f"ts.torch_handler.request_envelope.{module}"), name)
        except ImportError:
            continue
        envelope.parse_input = lambda _, data: data
        envelope.format_output = lambda _, data: data
