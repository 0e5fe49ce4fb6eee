"""The sandbox's folder of labelled images: what the example is evaluated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_release.build.evaluation.images import from_folder
from sandbox import digits


def test_labelled_digits_are_of_the_test_set_and_of_the_models_size(tmp_path: Path) -> None:
    assert digits.main(["evaluation", str(tmp_path / "labelled"), "--per-class", "3"]) == 0
    found = from_folder(tmp_path / "labelled", "labelled", pytest.fail)
    assert found.support == {str(digit): 3 for digit in range(10)}
    pictures, shown = digits._digits()
    seen, test = digits._split()
    large = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BICUBIC)) for p in pictures]
    for name, label in found.truth.items():
        with Image.open(tmp_path / "labelled" / name) as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
            same = [index for index, one in enumerate(large) if np.array_equal(one, np.asarray(image)[..., 0])]
        assert set(same) & set(test.tolist())
        assert not set(same) & set(seen.tolist())
        assert {str(shown[index]) for index in same} == {label}


def test_made_again_it_is_the_same(tmp_path: Path) -> None:
    assert digits.make_evaluation(tmp_path / "labelled", 2) == 20
    first = from_folder(tmp_path / "labelled", "labelled", pytest.fail).digest
    digits.make_evaluation(tmp_path / "labelled", 2)
    assert from_folder(tmp_path / "labelled", "labelled", pytest.fail).digest == first
    assert [path.name for path in tmp_path.iterdir()] == ["labelled"]


def test_more_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the test set has 38 images of the digit 0, not 39"):
        digits.make_evaluation(tmp_path / "labelled", 39)
    assert list(tmp_path.iterdir()) == []
