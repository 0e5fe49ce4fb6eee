"""One request through the handler against bare Pillow and torch, paired: `python benchmarks/handler.py`.

ViT-tiny's shape (192 wide, 12 layers, 3 heads, patches of 16 in 224x224) with random weights: the work is the same. The
picture is a JPEG of 640x480. Both sides run in one process on one thread, one after the other and in turns; the figure
is the median of the pairs' ratios: of the time that passed, and of the CPU's, which other work on the machine does not
stretch. What it counts of its answers (labels, how sure it was) goes through TorchServe's own metrics, and is measured
beside each pair. With --write all of it goes into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pages import write

PROJECT = Path(__file__).resolve().parents[1]
PAIRS = 60
COUNTED = 50  # times beside each pair: once takes less than a clock can tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("TS_SERVICE_ENVELOPE", None)
    sys.path[:0] = [str(PROJECT / "include" / "handlers"), str(PROJECT / "plugins")]
    import numpy as np
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification
    from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

    from model_release.build.runtimes.torchserve import metrics_yaml

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    config.num_labels = 1000

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ViTForImageClassification(config).eval()

        def forward(self, pixels: Any) -> Any:
            return self.model(pixels).logits

    preprocessing = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "crop_pct": None,
        "do_center_crop": False,
        "crop_size": None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    labels = [f"label {number}" for number in range(1000)]
    smooth = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    body = {"instances": [{"data": base64.b64encode(buffer.getvalue()).decode()}]}

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with torch.inference_mode():
            torch.jit.freeze(torch.jit.trace(Logits().eval(), torch.rand(1, 3, 224, 224))).save(folder / "model.pt")
        described = {"labels": labels, "input": {"height": 224, "width": 224}, "preprocessing": preprocessing}
        (folder / "model.json").write_text(json.dumps({**described, "activation": "softmax", "top_k": 5}))
        handler = importlib.import_module("image_classifier").ImageClassifier()
        context = SimpleNamespace(
            system_properties={"model_dir": scratch, "gpu_id": None},
            manifest={"model": {"modelName": "tiny"}},
            metrics=None,
            set_response_content_type=lambda *_: None,
        )
        handler.initialize(context)
        (folder / "metrics.yaml").write_text(metrics_yaml())
        metrics = MetricsCacheYamlImpl(str(folder / "metrics.yaml"))
        metrics.initialize_cache()
        bare_model = torch.jit.load(folder / "model.pt").eval()

    def ours() -> Any:
        return handler.handle([{"body": body}], context)[0]["predictions"][0]

    def bare() -> Any:
        picture = Image.open(io.BytesIO(base64.b64decode(body["instances"][0]["data"]))).convert("RGB")
        pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR), np.float32) / 255
        batch = torch.from_numpy(((pixels - 0.5) / 0.5).transpose(2, 0, 1)[None].copy())
        with torch.inference_mode():
            scores, classes = bare_model(batch).softmax(-1).topk(5)
        return [
            {"label": labels[which], "score": score}
            for score, which in zip(scores[0].tolist(), classes[0].tolist(), strict=True)
        ]

    # TorchServe's worker writes each of its metrics as a line, which its frontend reads.
    told = logging.getLogger("ts.metrics")
    told.addHandler(logging.StreamHandler(io.StringIO()))
    told.setLevel(logging.INFO)
    told.propagate = False
    images = importlib.import_module("image_model")
    counting = SimpleNamespace(metrics=metrics)
    answer = handler.classify([np.zeros((3, 224, 224), np.float32)], 5)
    scores = torch.rand(1, 1000).softmax(-1)

    def count() -> None:
        with torch.inference_mode():
            images.certainties(scores, False)
        handler._count(answer, 0.1, counting)

    assert [one["label"] for one in ours()] == [one["label"] for one in bare()], "not the same answer"
    for _ in range(3):
        ours(), bare()
    clocks = (time.perf_counter, time.process_time)
    counted: list[list[float]] = [[], []]  # by clock, what counting is of the request beside it
    spent: list[list[list[float]]] = [[[], []], [[], []]]  # by clock and side, seconds of each pair
    for pair in range(PAIRS):
        for side in (0, 1) if pair % 2 else (1, 0):
            started = [clock() for clock in clocks]
            (ours, bare)[side]()
            for clock, began, sides in zip(clocks, started, spent, strict=True):
                sides[side].append(clock() - began)
        started = [clock() for clock in clocks]
        for _ in range(COUNTED):
            count()
        for clock, began, shares, sides in zip(clocks, started, counted, spent, strict=True):
            shares.append((clock() - began) / COUNTED / sides[0][-1])

    def ratio(sides: list[list[float]]) -> str:
        low, middle, high = statistics.quantiles([one / other for one, other in zip(*sides, strict=True)], n=4)
        return f"**{middle:.3f}** ({low:.3f} – {high:.3f})"

    def part(shares: list[float]) -> str:
        low, middle, high = (f"{100 * one:.2f} %" for one in statistics.quantiles(shares, n=4))
        return f"**{middle}** ({low} – {high})"

    rows = {
        "through the handler": [f"{statistics.median(sides[0]) * 1000:.1f}" for sides in spent],
        "bare Pillow and torch": [f"{statistics.median(sides[1]) * 1000:.1f}" for sides in spent],
        f"**ratio, median of {PAIRS} pairs** (quartiles)": [ratio(sides) for sides in spent],
        "**what counting its answer is of that**, median (quartiles)": [part(shares) for shares in counted],
    }
    table = "| one JPEG of 640x480, ViT-tiny, one thread | median ms | of them the CPU's |\n|---|---:|---:|\n"
    table += "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows.items())
    print(table)
    if options.write:
        write({"handler": table.strip()})


if __name__ == "__main__":
    main()
