"""The example's training, as a model file names it: `run: sandbox.training:digits`.

A team's own is written like this one: see `model_release.build.training` for what is asked of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sandbox.digits import Recipe, train


def digits(destination: Path, log: Callable[[str], None], *, epochs: int = 26, seed: int = 4) -> dict[str, float]:
    """A small ViT on scikit-learn's handwritten digits, from random weights. Equal arguments give equal bytes.

    Returns `accuracy` (0-1) on the test digits and the `loss` (cross-entropy) of the last epoch's training.
    """
    curve = train("digits", Recipe(epochs=epochs, seed=seed), destination, log)
    (destination / "learning_curve.json").write_text(json.dumps(curve), encoding="utf-8")
    return {name: curve[-1][name] for name in ("accuracy", "loss")}
