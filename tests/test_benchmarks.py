"""What a benchmark says of its own figures."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def serving() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("serving")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_ratio_is_of_pairs_and_its_interval_is_students(serving: Any) -> None:
    ratio, low, high = serving.interval([2.0, 8.0, 4.0], [1.0, 2.0, 1.0])
    # Logarithms to base 2: 1, 2, 2; mean 5/3, deviation 0.57735, so half the interval is 4.303 x 0.57735 / sqrt(3).
    assert ratio == pytest.approx(2 ** (5 / 3))
    assert (low, high) == pytest.approx((2 ** (5 / 3 - 1.43433), 2 ** (5 / 3 + 1.43433)), rel=1e-4)
    assert serving.interval([3.0], [2.0]) == (pytest.approx(1.5), 0.0, math.inf), "one pair says nothing of itself"


def test_a_row_is_left_until_all_of_it_is_measured(serving: Any) -> None:
    options = argparse.Namespace(quick=True, only="tiny/1/kserve", again=False, all=False)
    kept = {
        "tiny/1/kserve float32/one": {"ratio": 1.0},
        "tiny/1/kserve int8/one": {"ratio": 2.0},
        "tiny/1/kserve bfloat16/one": {"ratio": 2.0},
        **{f"tiny/1/kserve {one}/mixed": {"at_70": 9} for one in ("float32", "int8", "bfloat16")},
    }
    ((model, cores, loads),) = serving.cells(kept, options)
    assert (model, cores) == ("tiny", 1)
    left = {load: [one.name for one in servers] for load, servers in loads.items()}
    assert left == {"one": ["pipeline", "kserve float32"]}, "its latency was not, and the pipeline goes along"
    kept["tiny/1/kserve float32/one"]["at_70"] = 200
    assert serving.cells(kept, options) == []


def test_few_requests_have_no_p99(serving: Any) -> None:
    assert serving.quantiles([0.1] * 99) == {"p50_ms": 100.0}
    assert serving.quantiles([0.1] * 98 + [0.5, 0.9]) == {"p50_ms": 100.0, "p99_ms": 900.0}
