"""Asks an archive's own handler for labelled images: `python -m model_release.build.evaluation.ask request.json`.

A program of its own, as the export is: it gives its memory back, and the worker's secrets are not in it. The handler
is taken out of the archive and called as its server calls it, one row for each image, so reading, preprocessing and
answering are those that are served.

The request: `archive`, `images` ([[name, file], …]), `batch`, `output` (a file that gets
[[name, label, score, fault], …]). Prints `{"progress": text}` lines, then `{"report": {…}}` or
`{"error": class, "message": line}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model_release.build import runtimes
from model_release.build.bare_check import unpack
from model_release.build.evaluation.measures import Answer

_LINE_EVERY = 5.0  # seconds

Image = tuple[str, str]  # name, file


class OneThread:
    """Stands where the handler keeps its model: forward passes run one after the other in a thread of their own.

    So they do in a server. Passes from several threads would each have a pool of OpenMP threads, and the
    idle pools' spinning takes the cores away from the one that works.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._thread = model, ThreadPoolExecutor(1, "model")

    def __call__(self, batch: Any) -> Any:
        return self._thread.submit(self._pass, batch).result()

    def _pass(self, batch: Any) -> Any:
        import torch

        with torch.inference_mode():  # the handler's own holds in its thread only
            return self._model(batch)


class Handler:
    """The handler of an archive, ready to be asked from several threads: it reads and preprocesses in each of them
    while the model runs in another."""

    def __init__(self, archive: Path, folder: Path) -> None:
        unpack(archive, folder)
        self._opened: runtimes.Loaded = runtimes.of_archive(archive).Loaded(folder, archive.stem)
        self.threads = 1
        holder = self._opened.holder
        if hasattr(holder, "model"):
            holder.model = OneThread(holder.model)
            self.threads = 1 + min(8, len(os.sched_getaffinity(0)))

    def answers(self, images: Sequence[Image]) -> list[Answer]:
        """One answer for each image. A failure of the model takes the whole batch with it here and a single request
        where it is served, so each image is then asked alone."""
        try:
            return self._batch(images)
        except Exception as error:
            if len(images) > 1:
                return [answer for image in images for answer in self.answers([image])]
            return [Answer(None, fault=f"the model failed: {reason(error)}")]

    def _batch(self, images: Sequence[Image]) -> list[Answer]:
        rows = self._opened.answers([Path(file).read_bytes() for _, file in images])
        return [
            Answer(None, fault=f"refused: {row}")
            if isinstance(row, str)
            else Answer(str(row[0]["label"]), float(row[0]["score"]))
            for row in rows
        ]


def ask(handler: Handler, images: Sequence[Image], batch: int, say: Callable[[str], None]) -> Iterator[Answer]:
    """The answers in the order of `images`. No more batches are decoded at a time than there
    are threads."""
    started = told = time.monotonic()
    groups = [images[first : first + batch] for first in range(0, len(images), batch)]
    pending: deque[Future[list[Answer]]] = deque()
    done = 0
    with ThreadPoolExecutor(handler.threads, "reader") as readers:
        while groups or pending:
            while groups and len(pending) <= handler.threads:
                pending.append(readers.submit(handler.answers, groups.pop(0)))
            answers = pending.popleft().result()
            done += len(answers)
            yield from answers
            now = time.monotonic()
            if now - told >= _LINE_EVERY and done < len(images):
                told = now
                speed = done / (now - started)
                left = (len(images) - done) / speed
                say(f"{done}/{len(images)} images, {speed:.1f} images/s, {left:.0f} s left")


def reason(error: BaseException) -> str:
    """One line. TorchScript's messages end with the error, behind the source that raised it."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return next((line for line in reversed(lines) if "Error" in line), f"{type(error).__name__}: {lines[-1]}")


def main() -> int:
    def say(kind: str, value: Any, **more: Any) -> None:
        sys.stdout.write(json.dumps({kind: value, **more}) + "\n")
        sys.stdout.flush()

    # The handler logs each failure on its own; they are in the answers.
    logging.disable(logging.ERROR)
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    images: list[Image] = [(name, file) for name, file in request["images"]]
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.monotonic()
        try:
            handler = Handler(Path(request["archive"]), Path(scratch))
        except Exception as error:
            say("error", "ArchiveError", message=f"the archive's handler does not load: {reason(error)}")
            return 1
        loaded = time.monotonic()
        answers = list(ask(handler, images, request["batch"], lambda text: say("progress", text)))
        ended = time.monotonic()
    rows = [[name, a.label, a.score, a.fault] for (name, _), a in zip(images, answers, strict=True)]
    Path(request["output"]).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    say("report", {"load_seconds": round(loaded - begun, 3), "seconds": round(ended - loaded, 3)})
    # The model's thread is idle; nothing is left to wait for.
    return 0


if __name__ == "__main__":
    sys.exit(main())
