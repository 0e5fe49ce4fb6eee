"""The walk-through's three models, small enough for a laptop: what the hub's dima806 repositories hold, in little.

Each is a Vision Transformer with the real one's name, labels, input size and preprocessing, of two narrow layers with
weights from a fixed seed. Nothing is trained: a walk-through shows how traffic moves from one task to the next, and its
answers need to be a model's, not right ones. Equal bytes each time.

`python -m sandbox.walkthrough_models FOLDER` puts them into the repositories that `python -m sandbox.hub FOLDER`
serves, so that the model files of the real ones run unchanged with `HF_ENDPOINT` set to that hub.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sandbox.repositories import Repositories

#: The service on which the three follow each other, by their model files.
SERVICE = "models/classifier-vit"
SIZE = 224

# What ViTImageProcessor saves for the google/vit-base-patch16-224-in21k that all three were fine-tuned from.
_PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": SIZE, "width": SIZE},
}


@dataclass(frozen=True)
class SmallModel:
    """`repository` on the hub, its labels in the order of the head's outputs, the seed of its weights, and when it was
    committed."""

    repository: str
    labels: tuple[str, ...]
    seed: int
    time: datetime


MODELS = {
    "facial-emotions": SmallModel(
        "dima806/facial_emotions_image_detection",
        ("sad", "disgust", "angry", "neutral", "fear", "surprise", "happy"),
        seed=1,
        time=datetime(2026, 11, 2, 9, tzinfo=UTC),
    ),
    "face-ages": SmallModel(
        "dima806/faces_age_detection",
        ("MIDDLE", "YOUNG", "OLD"),
        seed=2,
        time=datetime(2026, 11, 9, 9, tzinfo=UTC),
    ),
    "hand-gestures": SmallModel(
        "dima806/hand_gestures_image_detection",
        # The 18 gestures of HaGRID; in which order the real head has them, the real repository alone says.
        (
            *("call", "dislike", "fist", "four", "like", "mute", "ok", "one", "palm", "peace", "peace_inverted"),
            *("rock", "stop", "stop_inverted", "three", "three2", "two_up", "two_up_inverted"),
        ),
        seed=3,
        time=datetime(2026, 11, 16, 9, tzinfo=UTC),
    ),
}


def make(name: str, folder: Path) -> None:
    """Writes the checkpoint of one of `MODELS` into the folder: config, processor, weights as safetensors.

    Run again, equal bytes take the place of those that are there.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = MODELS[name]
    config = transformers.ViTConfig(
        image_size=SIZE,
        patch_size=32,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # Wide enough for different images to get different answers.
        initializer_range=0.3,
        id2label=dict(enumerate(model.labels)),
        label2id={label: index for index, label in enumerate(model.labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.seed)
        classifier = transformers.ViTForImageClassification(config)
    folder.mkdir(parents=True, exist_ok=True)
    classifier.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n", encoding="utf-8")


def publish(folder: Path, log: Callable[[str], None] = print) -> dict[str, str]:
    """Commits the three to the hub's repositories in `folder`, and returns their commits by name.

    Run again, the commits are there already, and stay as they are.
    """
    repositories, commits = Repositories(folder), {}
    for name, model in MODELS.items():
        with TemporaryDirectory(prefix="small-") as scratch:
            make(name, Path(scratch))
            files: dict[str, bytes | Path] = {path.name: path for path in sorted(Path(scratch).iterdir())}
            commits[name] = repositories.add_commit(model.repository, files, model.time, "A small one, for a laptop")
        log(f"{model.repository}@{commits[name]}: {len(model.labels)} labels")
    return commits


def images(count: int = 36, seed: int = 0) -> list[bytes]:
    """Encoded pictures for a load test: shapes on gradients, from thumbnails to a camera's, PNG and JPEG, in colour and
    grey. Equal seeds give equal pictures."""
    random = np.random.default_rng(seed)
    return [_picture(random, number) for number in range(count)]


def _picture(random: np.random.Generator, number: int) -> bytes:
    from PIL import Image, ImageDraw

    width, height = ((64, 64), (224, 224), (320, 240), (240, 320), (640, 480), (48, 96))[number % 6]
    corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
        right = left + int(random.integers(width // 8, width // 2))
        bottom = top + int(random.integers(height // 8, height // 2))
        colour: Any = tuple(int(part) for part in random.integers(0, 256, 3))
        shape = (draw.ellipse, draw.rectangle)[int(random.integers(0, 2))]
        shape((left, top, right, bottom), fill=colour)
    if number % 5 == 4:
        image = image.convert("L")
    buffer = io.BytesIO()
    if number % 2:
        image.save(buffer, "JPEG", quality=90)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.walkthrough_models", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the repositories of the sandbox's hub")
    publish(parser.parse_args(arguments).folder, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
