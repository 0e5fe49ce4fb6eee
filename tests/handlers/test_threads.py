"""Pictures that are read in several threads at once, as the model class for KServe's server reads them."""

from __future__ import annotations

import importlib
import resource
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from image_headers import NotAlone, Turns, memory
from image_input import BadInput, read_image
from PIL import Image
from tests.patience import until

from model_release.build.runtimes import kserve

from .test_bombs import ico, lying_avif, png
from .test_image_requests import MODEL, PNG, encoded


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """The model class; it only reads."""
    kserve._stand_in()
    found = importlib.import_module("kserve_model").ImageClassifier("tiny", tmp_path)
    found.images.described = MODEL
    return found


def test_pictures_that_limit_the_memory_leave_it_as_it_was_and_are_right(model: Any) -> None:
    """The limit is the process' own. Two that overlapped left it behind for ever: from then on the network had no
    memory either, and anybody who sent two AVIFs at once could end a service."""
    before, honest = resource.getrlimit(resource.RLIMIT_DATA), encoded("AVIF", Image.new("RGB", (800, 600)))
    lies = lying_avif()

    def read(body: bytes) -> str:
        try:
            return f"{len(model.read({'body': body}).inputs)} read"
        except ValueError as error:
            return str(error)[:40]

    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(read, [honest, lies, PNG] * 6))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert said == ["1 read", "bad input: the image cannot be decoded: ", "1 read"] * 6


def test_who_limits_the_memory_is_alone() -> None:
    turns, seen, others = Turns(), list[str](), threading.Event()

    def beside(name: str) -> None:
        with turns.beside():
            seen.append(name)
            others.wait()
            seen.append(name)

    def alone() -> None:
        with turns.alone(), memory(1 << 30):
            seen.append("alone")

    threads = [threading.Thread(target=beside, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    with turns.beside(), pytest.raises(NotAlone), memory(1 << 30):
        pass
    last = threading.Thread(target=alone)
    last.start()
    until(lambda: turns._waiting or "alone" in seen, "nobody waits to be alone")
    others.set()
    for thread in (*threads, last):
        thread.join()
    assert sorted(seen[:-1]) == ["a", "a", "b", "b"]
    assert seen[-1] == "alone"


def test_pillows_own_limit_holds_while_another_thread_ends() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        bombs = list(pool.map(refused, [ico(png(12_000, 12_000)), PNG] * 20))
    assert bombs == ["image of 144000000 pixels, over the limit of 50 megapixels", ""] * 20
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == (limit, filters)


def refused(raw: bytes) -> str:
    """Why; nothing for a picture that is read."""
    try:
        read_image(raw)
    except BadInput as error:
        return str(error)
    return ""
