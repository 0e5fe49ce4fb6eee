"""What timm's own eval transform makes of pictures: `python tests/build/timm_pictures.py` writes tests/data/timm.npz.

That takes torchvision, which this project does not install (`build/timm_model.py` says why): an environment that has
it, or one into whose PYTHONPATH it was unpacked. Last made by timm 1.0.31 and torchvision 0.28.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILE = Path(__file__).resolve().parents[1] / "data" / "timm.npz"

#: (width, height): even and odd, so that the middle of some lies between two pixels.
SHAPES = ((57, 40), (40, 57), (33, 33), (1, 1), (9, 131))
_RAW = {"mean": [0.0], "std": [1.0]}
#: pretrained_cfg by name. Without mean and standard deviation the pixels are whole numbers, by 255.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{mode} {share} {interpolation}": {
            **_RAW,
            "input_size": [3, 24, 24],
            "crop_mode": mode,
            "crop_pct": share,
            "interpolation": interpolation,
        }
        for mode, share, interpolation in (
            ("center", 0.875, "bicubic"),
            ("center", 0.95, "bilinear"),
            ("center", 1.0, "bicubic"),
            ("center", 0.9, "lanczos"),
            ("center", 0.96, "nearest"),
            ("center", 1.15, "bicubic"),
            ("squash", 1.0, "bicubic"),
            ("squash", 0.9, "box"),
            ("squash", 1.2, "hamming"),
        )
    },
    "oblong, squashed": {**_RAW, "input_size": [3, 16, 30], "crop_mode": "squash", "crop_pct": 0.9},
    "odd": {**_RAW, "input_size": [3, 21, 21], "crop_pct": 0.8},
    "nothing said but the size": {"input_size": [3, 20, 20]},
    "test sizes are not heeded": {"input_size": [3, 18, 18], "test_input_size": [3, 30, 30], "test_crop_pct": 1.0},
    "one mean for all": {"input_size": [3, 18, 18], "mean": [0.5], "std": [0.25], "crop_mode": ""},
}


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def main() -> None:
    import torch

    if torch.version.cuda is None:  # beside such a torch PyPI's torchvision lacks its operators, which no picture needs
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from timm.data import create_transform, resolve_data_config

    made = {}
    for name, settings in CASES.items():
        # As transformers' TimmWrapperImageProcessor asks for it.
        transform = create_transform(**resolve_data_config(settings, model=None), is_training=False)
        for shape in SHAPES:
            pixels = transform(picture(*shape)).numpy()
            whole = "mean" in settings and settings["mean"] == [0.0]
            made[f"{name} {shape[0]}x{shape[1]}"] = np.rint(pixels * 255).astype(np.uint8) if whole else pixels
    np.savez_compressed(FILE, **made)


if __name__ == "__main__":
    main()
