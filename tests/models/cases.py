"""Which models are tried: tiny ones of every architecture that the installed transformers maps to image
classification, and full-size ones of the architectures that people download most.

A case is a configuration and a processor; weights are random, with trained-like statistics (`models.make`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from small import TINY
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES


@dataclass(frozen=True)
class Case:
    """`kind` is the configuration's model_type; `processor` the settings beside the class of `image_processor`
    (default: the one that transformers maps to the kind). A `bare` one is a config.json without weights, of what must
    be refused by its name."""

    kind: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    image_processor: str | None = None
    architecture: str | None = None
    bare: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".strip()


# Kinds without a processor of their own in transformers' mapping, and what their checkpoints are saved with.
PROCESSORS = {"hgnet_v2": "BitImageProcessorPil", "dinov2_with_registers": "BitImageProcessorPil"}

#: Those that the installed transformers cannot make here, or not as a small one.
BARE = ("dinat", "shieldgemma2")

_OTHER_CLASSES = {
    "deit with teacher": "DeiTForImageClassificationWithTeacher",
    "levit with teacher": "LevitForImageClassificationWithTeacher",
    "perceiver Fourier": "PerceiverForImageClassificationFourier",
    "perceiver ConvProcessing": "PerceiverForImageClassificationConvProcessing",
}


#: What must be refused, with words of the one right line.
REFUSED = {
    "dinat": "DinatForImageClassification, which cannot be exported: its attention is natten's",
    "pp_lcnet": "image processor exists for torchvision alone",
    "shieldgemma2": "ShieldGemma2ForImageClassification, which cannot be exported: it is asked in words",
    "timm_wrapper border": "pretrained_cfg.crop_mode 'border' (known: center, squash)",
    "vit size as text": "transformers cannot load preprocessor_config.json: Could not convert size input",
    "vit rescale_factor null": "rescale_factor=None (known: a number)",
}


def kinds() -> list[str]:
    """What the installed transformers maps to image classification."""
    return sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def tiny() -> Iterator[Case]:
    """One case or more of every kind; a kind that nobody has described here yet comes without configuration."""
    for kind in kinds():
        if kind not in TINY:
            yield Case(kind, "(no tiny configuration in tests/models/small.py yet)")
            continue
        config, processor, variants = TINY[kind]
        yield Case(kind, "", config, processor, PROCESSORS.get(kind), bare=kind in BARE)
        for name, (changes, settings) in variants.items():
            yield Case(
                *(kind, name, {**config, **changes}, {**processor, **settings}, PROCESSORS.get(kind)),
                architecture=_OTHER_CLASSES.get(f"{kind} {name}"),
            )
