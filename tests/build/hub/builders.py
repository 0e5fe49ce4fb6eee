"""Repositories for the tests: small checkpoints, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from model_release.build.source import Checkpoint
from sandbox.hub import Hub

NAME = "dima806/faces_age_detection"
SOURCE = {"hub": NAME}
TOKEN = "hf_aVerySecretWord"
MONDAY = datetime(2026, 11, 16, 12, tzinfo=UTC)
DAY = timedelta(days=1)

Fetch = Callable[..., Checkpoint]


def safetensors(size: int = 64) -> bytes:
    """A file in safetensors format with one tensor of `size` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(index * 7 % 251 for index in range(size))


def checkpoint(size: int = 64, **config: Any) -> dict[str, bytes]:
    """The files of a small classifier's repository, with some that nobody needs."""
    described = {
        "architectures": ["ViTForImageClassification"],
        "id2label": {"0": "MIDDLE", "1": "YOUNG", "2": "OLD"},
        **config,
    }
    return {
        "config.json": json.dumps(described).encode(),
        "preprocessor_config.json": b'{"image_processor_type": "ViTImageProcessor"}',
        "model.safetensors": safetensors(size),
        "README.md": b"# hello",
        "pytorch_model.bin": b"pickled",
        "modeling_own.py": b"raise SystemExit",
        "checkpoint-100/model.safetensors": safetensors(8),
    }


def asked(hub: Hub, where: str = "", method: str | None = None) -> list[str]:
    """Paths of the requests that contain `where`, without their signatures."""
    return [one.path.split("?")[0] for one in hub.requests if where in one.path and method in (None, one.method)]
