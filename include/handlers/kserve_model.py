"""The model class of KServe's Python server: one for every image classifier that this project exports.

The archive holds the network, `model.json` and this file with `image_*.py` beside it, which the TorchServe handler has,
too: requests, files, headers, pixels, the model. Needs torch, Pillow, NumPy and `kserve`.

Requests, answers and whose error it is: as with the TorchServe handler (docs/requests.md). The server
(include/images/serving-kserve/server.py) answers `InvalidInput` with 400, and whatever else is raised here with 503.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

# The server puts the archive's own folder on sys.path.
from image_headers import NotAlone, Turns
from image_model import ImageModel, Labels, certainty, counted, cpus, sureness
from image_pixels import BadInput
from image_requests import Request, read_request
from image_slices import SliceCounter
from kserve import Model
from kserve.errors import InvalidInput
from prometheus_client import Counter, Histogram

#: The version of the model inside of the server. Releases are told apart by revision, never by this.
MODEL_VERSION = "1.0"

# By the names, and with the labels, that TorchServe has for them: a release from one to the other compares them.
_SECONDS = Histogram("image_classifier_request_seconds", "Reading, network and answer", ["ModelName", "Level"])
_PREDICTIONS = Counter("image_classifier_predictions_total", "The likeliest labels", ["label", "ModelName", "Level"])
_CONFIDENCE = Counter("image_classifier_confidence_total", "How sure it was of them", ["below", "ModelName", "Level"])
_CERTAINTY = Counter("image_classifier_certainty_total", "How sure, by entropy", ["below", "ModelName", "Level"])
_SLICES = Counter(
    "image_classifier_slices_total", "By slice of the traffic", ["slice", "value", "below", "ModelName", "Level"]
)


class ImageClassifier(Model):
    """What the server calls: `load` once, then `preprocess` and `predict` for each request.

    Pictures are read in as many threads as the pod has CPUs; the network is asked in a thread of its own: the event
    loop answers probes meanwhile. What limits the memory of the whole process while it is read (AVIF) is read while
    nothing else is read or passed. What waits for the network goes together as long as each CPU has one picture at the
    most; with `batching`, up to `max` requests go together, and the first of them waits `within_ms` for others, or not
    at all where as many are there already.
    """

    def __init__(self, name: str, folder: Path, batching: Mapping[str, int] | None = None) -> None:
        super().__init__(name)
        self._folder, self.images, self.slices = folder, ImageModel(), SliceCounter()
        self._batching = batching
        self._held: list[tuple[Request, Future[Any]]] = []  # taken from the queue, and of the next pass
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Any]]] = queue.SimpleQueue()
        self._turns = Turns()
        self._readers, self._network = ThreadPoolExecutor(cpus(), "reader"), ThreadPoolExecutor(1, "network")

    def load(self) -> bool:
        """Loads the network and warms it up, in the thread that will run it. Raises what keeps it from being served."""
        # The first GPU, where there is one: a pod sees none but its own.
        self._network.submit(self.images.open, self._folder, self.name, MODEL_VERSION, 0).result()
        self.ready = True
        return True

    def read(self, fields: dict[str, Any]) -> Request:
        """One request, `body` or the fields of a form. Raises `InvalidInput`, one line that names the field."""
        try:
            try:
                with self._turns.beside():
                    return read_request(fields, self.images.described)
            except NotAlone:
                with self._turns.alone():
                    return read_request(fields, self.images.described)
        except BadInput as error:
            raise InvalidInput(f"bad input: {error}") from None

    async def preprocess(self, payload: dict[str, Any], headers: Any = None) -> tuple[Request, float]:
        """Reads and decodes; the time since when this is under way goes with it."""
        began = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read, payload), began

    async def predict(self, payload: tuple[Request, float], headers: Any = None) -> Any:
        """The body of the answer."""
        request, began = payload
        asked: Future[Any] = Future()
        self._waiting.put((request, asked))
        # One pass for each request: those that find nothing left to do are done.
        self._network.submit(self._pass)
        labels, predictions = await asyncio.wrap_future(asked)
        _SECONDS.labels(self.name, "Model").observe(time.perf_counter() - began)
        for label, count in counted(predictions).items():
            _PREDICTIONS.labels(label, self.name, "Model").inc(count)
        sure = sureness(predictions)
        for band, count in sure.items():
            _CONFIDENCE.labels(band, self.name, "Model").inc(count)
        for band, count in certainty(predictions).items():
            _CERTAINTY.labels(band, self.name, "Model").inc(count)
        for told, count in self.slices.count(headers or {}, sure).items():
            _SLICES.labels(*told, self.name, "Model").inc(count)
        return labels

    def classified(self, requests: list[Request]) -> tuple[list[Any], list[Labels]]:
        """The body of each request's answer, and the labels of each picture; all in as few batches as can be."""
        answers, found = self.images.answered(requests)
        return answers, [labels for own in found for labels in own]

    def _pass(self) -> None:
        """Answers what waits, as much as may go together. A client that has gone is not answered for."""
        batch: list[tuple[Request, Future[Any]]] = []
        together = self._batching or {"max": self.images.cores, "within_ms": 0}
        until = time.monotonic() + together["within_ms"] / 1000
        while len(batch) < together["max"]:
            try:
                left = max(0.0, until - time.monotonic()) if batch else 0.0
                one = self._held.pop() if self._held else self._waiting.get(timeout=left)
            except queue.Empty:
                break
            pictures = sum(len(request.inputs) for request, _ in [*batch, one])
            if batch and not self._batching and pictures > self.images.cores:
                self._held.append(one)  # for the next pass: nobody's one picture waits for all of those
                break
            if one[1].set_running_or_notify_cancel():
                batch.append(one)
        with self._turns.beside():
            answers = self.images.each([request for request, _ in batch]) if batch else []
        for (_, asked), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                asked.set_exception(answer)
            else:
                asked.set_result(answer)
