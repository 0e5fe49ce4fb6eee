"""How an archive's handler is asked: in order, a few batches at a time, one forward pass at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model_release.build.evaluation import ask
from model_release.build.evaluation.measures import Answer


class Counting:
    """A handler that takes its time, and keeps how many of its calls were under way at once."""

    threads = 3

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.batches = threading.Lock(), 0, 0, list[int]()

    def answers(self, images: list[ask.Image]) -> list[Answer]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.batches.append(len(images))
        # Later batches are ready first.
        time.sleep(0.02 / (1 + int(images[0][0])))
        with self.lock:
            self.now -= 1
        return [Answer(name) for name, _ in images]


def test_answers_come_in_order_and_no_more_batches_than_threads_are_in_memory() -> None:
    handler: Any = Counting()
    images = [(str(number), f"{number}.png") for number in range(23)]
    found = list(ask.ask(handler, images, 4, pytest.fail))
    assert [answer.label for answer in found] == [name for name, _ in images]
    assert sorted(handler.batches) == [3, 4, 4, 4, 4, 4]
    assert 1 < handler.most <= handler.threads


def test_the_next_batches_are_read_while_one_is_answered_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    handler: Any = Counting()
    answers = ask.ask(handler, [(str(number), "") for number in range(100)], 1, pytest.fail)
    next(answers)
    time.sleep(0.1)
    assert len(handler.batches) <= handler.threads + 1
    assert len(list(answers)) == 99


def test_progress_is_told_with_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_LINE_EVERY", 0.0)
    handler: Any = Counting()
    told: list[str] = []
    list(ask.ask(handler, [(str(number), "") for number in range(12)], 4, told.append))
    assert [line.split(",")[0] for line in told] == ["4/12 images", "8/12 images"]
    assert all("images/s, " in line and line.endswith(" s left") for line in told)


def test_forward_passes_run_in_one_thread_without_gradients() -> None:
    import torch

    seen: list[tuple[str, bool]] = []

    def model(batch: Any) -> Any:
        seen.append((threading.current_thread().name, torch.is_inference_mode_enabled()))
        return batch * 2

    one = ask.OneThread(model)
    with ThreadPoolExecutor(4) as readers:
        doubled = list(readers.map(one, (torch.tensor([float(number)]) for number in range(8))))
    assert [float(value) for value in doubled] == [2.0 * number for number in range(8)]
    assert {name for name, _ in seen} == {"model_0"}
    assert all(inference for _, inference in seen)


def test_an_error_in_the_model_reaches_the_handler() -> None:
    def model(_: Any) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        ask.OneThread(model)(None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("Traceback of TorchScript\n  code\nRuntimeError: shapes differ\n"),
            "RuntimeError: shapes differ",
        ),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError: no reason given"),
    ],
)
def test_reasons_have_one_line(error: Exception, line: str) -> None:
    assert ask.reason(error) == line
