"""The TorchServe handler: one for every image classifier that this project exports.

The archive holds `model.pt` (TorchScript), `model.json` (labels, input size, preprocessing) and this file with
`image_*.py` beside it: requests, files, headers, pixels, the model. Needs torch, Pillow and NumPy.

Requests: what `image_requests` reads, with TorchServe's envelopes (`TS_SERVICE_ENVELOPE=kserve` or `kservev2`, as
KServe runs it) and without, alike. All images of a request are one batch.

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
import os
import time
from pathlib import Path
from typing import Any

# TorchServe puts the archive's own folder on sys.path.
from image_model import ImageModel, Labels, certainty, counted, sureness
from image_pixels import BadInput
from image_requests import Request, read_request
from image_slices import Counts, SliceCounter
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException


class ImageClassifier(ImageModel):
    """What TorchServe calls: `initialize` once in each worker, `handle` for each batch of requests."""

    def initialize(self, context: Any) -> None:
        """Loads model and labels from the archive's folder and warms the model up.

        An exception here keeps the worker, and so the revision, from ever being ready.
        """
        properties = context.system_properties
        self.enveloped = bool(os.environ.get("TS_SERVICE_ENVELOPE"))
        if self.enveloped:
            _open_envelopes()
        self.slices = SliceCounter()
        told = context.manifest["model"]
        self.open(
            Path(properties["model_dir"]), told["modelName"], told.get("modelVersion", ""), properties.get("gpu_id")
        )

    def handle(self, data: Any, context: Any) -> list[Any]:
        """One answer for each row of `data`, a request each, refused on its own: with a status of its own, which under
        an envelope TorchServe gives by itself to a request that came alone."""
        started = time.perf_counter()
        answers: list[Any] = [None] * len(data)
        requests: dict[int, Request] = {}
        for row, fields in enumerate(data):
            try:
                requests[row] = read_request(fields, self.described)
            except BadInput as error:
                if self.enveloped and len(data) == 1:
                    raise PredictionException(f"bad input: {error}", 400) from None
                context.set_response_status(400, "Bad Request", row)
                answers[row] = self._told(400, f"bad input: {error}")
            if not self.enveloped:
                context.set_response_content_type(row, "application/json")
        sliced = Counts()
        for row, answer in zip(requests, self.each(list(requests.values())), strict=True):
            if not isinstance(answer, Exception):
                answers[row], predictions = answer
                self._count(predictions, time.perf_counter() - started, context)
                if self.slices:
                    sliced += self.slices.count(context.get_all_request_header(row), sureness(predictions))
            elif len(data) == 1:
                raise answer
            else:
                context.set_response_status(503, "Service Unavailable", row)
                answers[row] = self._told(503, "Prediction failed")
        self._count_slices(sliced, context)
        return answers

    def _told(self, status: int, text: str) -> dict[str, Any]:
        """The body of a request that has no answer; under an envelope as TorchServe writes it."""
        if not self.enveloped:
            return {"error": text}
        return {"code": status, "type": "InternalServerException", "message": text}

    @staticmethod
    def _count(predictions: list[Labels], seconds: float, context: Any) -> None:
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
        for label, count in counted(predictions).items():
            context.metrics.add_metric(
                "image_classifier_predictions_total",
                count,
                "Count",
                dimensions=[Dimension("label", label)],
            )
        for name, bands in (("confidence", sureness(predictions)), ("certainty", certainty(predictions))):
            for band, count in bands.items():
                context.metrics.add_metric(
                    f"image_classifier_{name}_total",
                    count,
                    "Count",
                    dimensions=[Dimension("below", band)],
                )

    @staticmethod
    def _count_slices(sliced: Any, context: Any) -> None:
        for told, count in sliced.items() if context.metrics is not None else ():
            context.metrics.add_metric(
                "image_classifier_slices_total",
                count,
                "Count",
                dimensions=[Dimension(*pair) for pair in zip(("slice", "value", "below"), told, strict=True)],
            )


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
