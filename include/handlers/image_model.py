"""A classifier as a version holds it: from pictures' pixels to labels. The same for each server that serves it.

The folder holds `model.json` (labels, input size, preprocessing) and the network: `model.pt2` (torch.export) or
`model.pt` (TorchScript). Needs torch and NumPy.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# A server puts the archive's own folder on sys.path.
from image_input import MAX_INSTANCES
from image_requests import Model, Request

logger = logging.getLogger(__name__)

EXPORTED, SCRIPTED = "model.pt2", "model.pt"

# A TorchScript model's first calls are up to 200 times slower than the rest, and so is the first call with a
# new batch size: without these the first users of a canary would wait for the compiler.
WARM_UP_BATCHES = (1, 1, 1, 2, 2)


class Labels(list[dict[str, Any]]):
    """The best labels of one picture, likeliest first, and of the probabilities of all labels one number: `certainty`,
    1 where one label has all and 0 where each has as much."""

    certainty = 1.0


class ImageModel:
    """One classifier, loaded once and asked many times. It knows of no server.

    One picture is worked on by all of the pod's CPUs; several are dealt out to them. An operator that is shared by two
    CPUs ends when the slower one has done its half, and small ones hardly gain by it: two pictures are answered sooner
    on a CPU each than one after the other on both, and by far where something else wants a CPU, too.
    """

    cores = 1

    def open(self, folder: Path, name: str, version: str, gpu: Any = None) -> None:
        """Loads model and labels from `folder` and warms the model up. `name` and `version` are what an answer in V2
        says; `gpu` is the number of one to be tried first."""
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.labels: list[str] = description["labels"]
        self.input_size: tuple[int, int] = (description["input"]["height"], description["input"]["width"])
        self.preprocessing: dict[str, Any] = description["preprocessing"]
        self.sigmoid = description["activation"] == "sigmoid"
        self.top_k = min(int(description["top_k"]), len(self.labels))
        self.described = Model(name, version, self.preprocessing, self.input_size, description["activation"])
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cpus())
        self._load(folder, gpu)
        if self.device.type == "cpu" and (lacking := lacks(description.get("precision", "float32"))):
            logger.warning("%s", lacking)
        logger.info(
            "ready: %d labels, input %dx%d, on %s, %d threads",
            *(len(self.labels), *reversed(self.input_size), self.device, torch.get_num_threads()),
        )

    def _load(self, folder: Path, gpu: Any) -> None:
        """Loads and warms up, on the GPU where there is one and the model runs on it."""
        if gpu is not None and torch.cuda.is_available():
            try:
                self._load_on(torch.device(f"cuda:{gpu}"), folder)
            except Exception as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
                logger.warning("the model does not run on cuda:%s, so it is served on the CPU: %s", gpu, reason)
            else:
                return
        self._load_on(torch.device("cpu"), folder)

    def _load_on(self, device: torch.device, folder: Path) -> None:
        self.device = device
        self.model = network(folder, device)
        self.deal_out_to(torch.get_num_threads() if device.type == "cpu" else 1)
        for batch in WARM_UP_BATCHES:
            self._forward(np.zeros((batch, 3, *self.input_size), np.float32))

    def deal_out_to(self, cores: int) -> None:
        """From now on the pictures of a batch are dealt out to so many CPUs; with one of them, or on a GPU (1), they go
        through the network together."""
        self.cores = cores
        self._dealt = ThreadPoolExecutor(cores, "core")

    def wanted(self, top_k: int | None) -> int:
        """How many labels a request gets that asks for `top_k`; None asks for as many as the model has it."""
        return min(top_k or self.top_k, len(self.labels))

    def classify(self, pixels: list[npt.NDArray[np.float32]], top_k: int) -> list[Labels]:
        """The best labels of each input [3, height, width], in as few batches as can be."""
        answers: list[Any] = [None] * len(pixels)
        for rows in _batches(pixels):
            logits = self._logits(np.stack([pixels[row] for row in rows]))
            probabilities = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
            scores, classes = probabilities.topk(top_k)
            sure = certainties(probabilities, self.sigmoid)
            for row, best, which, certainty in zip(rows, scores.tolist(), classes.tolist(), sure, strict=True):
                answers[row] = Labels(
                    {"label": self.labels[label], "score": round(score, 6)}
                    for score, label in zip(best, which, strict=True)
                )
                answers[row].certainty = certainty
        return answers

    def answered(self, requests: list[Request]) -> tuple[list[Any], list[list[Labels]]]:
        """The body of each request's answer, and the labels of each one's pictures; all in as few batches as can be.
        Raises what the network raises."""
        wanted = [self.wanted(request.top_k) for request in requests]
        labels = iter(self.classify([one for request in requests for one in request.inputs], max(wanted, default=1)))
        found = [[next(labels) for _ in request.inputs] for request in requests]
        bodies = [
            request.answer([best[:top_k] for best in own])
            for request, top_k, own in zip(requests, wanted, found, strict=True)
        ]
        return bodies, found

    def each(self, requests: list[Request]) -> list[tuple[Any, list[Labels]] | Exception]:
        """For each request its answer's body and its pictures' labels, or what the network raises for it: where it
        fails for all together, each is tried alone, so that nobody's picture does harm to another client's request."""
        try:
            return list(zip(*self.answered(requests), strict=True))
        except Exception as error:
            return [error] if len(requests) == 1 else [one for request in requests for one in self.each([request])]

    def _logits(self, batch: npt.NDArray[np.float32]) -> torch.Tensor:
        """Of one picture on all CPUs, of several on a CPU each, or on as many as there are for each."""
        shares = min(len(batch), self.cores)
        if shares == 1:
            return self._forward(batch)

        threads = self.cores // shares

        def share(part: npt.NDArray[np.float32]) -> torch.Tensor:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # of this thread alone
            return self._forward(part)

        under_way = [self._dealt.submit(share, part) for part in np.array_split(batch, shares)]
        wait(under_way)  # all of them, also where one fails: what comes next has the CPUs to itself
        return torch.cat([one.result() for one in under_way])

    def _forward(self, batch: npt.NDArray[np.float32]) -> torch.Tensor:
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self.model(torch.from_numpy(batch).to(self.device)).float()
        except Exception as error:  # RuntimeError of TorchScript, AssertionError of an exported program's guards
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


def _batches(pixels: list[npt.NDArray[np.float32]]) -> Iterator[list[int]]:
    """The places of those that go together. One batch for each size there is: with a processor that resizes, as nearly
    all do, that is one. None is larger than one request's may be: memory grows with it."""
    for shape in dict.fromkeys(array.shape for array in pixels):
        rows = [row for row, array in enumerate(pixels) if array.shape == shape]
        for first in range(0, len(rows), MAX_INSTANCES):
            yield rows[first : first + MAX_INSTANCES]


def network(folder: Path, device: torch.device) -> Any:
    """The network in `folder`, ready to be called with pixels [batch, 3, height, width]."""
    if not (folder / EXPORTED).exists():
        scripted = torch.jit.load(folder / SCRIPTED, map_location="cpu").eval()
        return scripted if device.type == "cpu" else _moved(scripted, device)
    program = torch.export.load(folder / EXPORTED)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        # Weights and those constants that were made on a CPU, alike.
        program = move_to_device_pass(program, device)
    return program.module()


def _moved(scripted: Any, device: torch.device) -> Any:
    """TorchScript on another device than the one it was traced on. A frozen network's weights are constants, and so is
    the device on which Swin or BEiT make tensors of their own: none of them moves with the module."""
    for constant in scripted.graph.findAllNodes("prim::Constant"):
        kind = constant.output().type().kind()
        if kind == "DeviceObjType":
            constant.s_("value", str(device))
        # Single numbers are for counting rows and columns, which is done on the CPU, and mix with any device.
        elif kind == "TensorType" and "value" in constant.attributeNames() and constant.t("value").dim():
            constant.t_("value", constant.t("value").to(device))
    return scripted.to(device)


# Any of them will do.
_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "i8mm"),
}


def lacks(precision: str) -> str | None:
    """One line where this CPU has no instructions for a network's precision, so that it is answered right and slowly;
    None where it has, and where this torch cannot tell."""
    asked = getattr(torch.cpu, "get_capabilities", None)
    wanted = _INSTRUCTIONS.get(precision, ())
    if asked is None or not wanted or any(asked().get(name) for name in wanted):
        return None
    return (
        f"the network is in {precision}, for which this CPU has none of {', '.join(wanted)}: its answers are right and "
        "slow; another CPU, or build.precision: float32, would be fast"
    )


def certainties(probabilities: torch.Tensor, several: bool) -> list[float]:
    """Of each row 1 less its normalised entropy: Shannon's, divided by that of labels that are all as likely (Shannon
    1948, "A Mathematical Theory of Communication"). With `several` labels at once each one is a question of its own,
    yes or no, and it is the mean of theirs."""
    entropy = torch.special.entr(probabilities)
    if several:
        share = (entropy + torch.special.entr(1 - probabilities)).mean(-1) / math.log(2)
    else:
        # One label alone leaves nothing open.
        share = entropy.sum(-1) / math.log(max(probabilities.shape[-1], 2))
    certain: list[float] = (1 - share).tolist()
    return certain


def counted(predictions: list[Labels]) -> dict[str, int]:
    """{label: how often it was the likeliest}, by names that a metric of any server may have."""
    # TorchServe's metrics travel as log lines, in which these characters have a meaning.
    return Counter(re.sub(r"[,:|#\[\]\s]+", "_", top[0]["label"]) for top in predictions)


def sureness(predictions: list[Labels]) -> Counter[str]:
    """How sure the model was, by the probability of the likeliest label."""
    return _twentieths(labels[0]["score"] for labels in predictions)


def certainty(predictions: list[Labels]) -> Counter[str]:
    """How sure it was, by the entropy of all probabilities."""
    return _twentieths(labels.certainty for labels in predictions)


def _twentieths(shares: Iterable[float]) -> Counter[str]:
    """How many lie in each twentieth, by its upper edge: a counter of each, for a histogram's edges are not ours to
    choose."""
    bands = Counter(min(int(20 * share + 1e-6), 19) for share in shares)
    return Counter({f"{(band + 1) / 20:.2f}": count for band, count in bands.items()})


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
