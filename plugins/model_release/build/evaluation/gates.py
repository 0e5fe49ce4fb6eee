"""The limits of a model file's `evaluation`, asked of what was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model_release.errors import SpecError
from model_release.spec import Evaluation


def check_limits(limits: Evaluation, support: Mapping[str, int], uri: str) -> None:
    """Raises `SpecError` for a floor under a label of which there are no images: it could never fail."""
    if isinstance(limits.min_recall, dict):
        for label in limits.min_recall:
            if not support.get(label):
                raise SpecError(
                    f"evaluation.min_recall names {label!r}, of which {uri} has no images; it has images of "
                    f"{some(support)}"
                )


def gates(
    limits: Evaluation,
    candidate: Mapping[str, Any],
    comparison: Mapping[str, Any],
    float32: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Each limit as {"name", "limit", "value", "passed", "sentence"}, in the order of the model file. `float32` is the
    comparison of a network in another precision with the same checkpoint's in that one.

    `passed` is True, False, or None for a limit that could not be asked, since the comparison was skipped. A value on
    the limit passes.
    """
    asked = []
    if limits.min_accuracy is not None:
        asked.append(_at_least("accuracy", candidate["accuracy"], limits.min_accuracy))
    if limits.max_regressions is not None:
        asked.append(_regressions(limits.max_regressions, comparison, "regressions", "stable"))
        if float32 is not None:
            asked.append(_regressions(limits.max_regressions, float32, "regressions beside float32", "float32"))
    if limits.min_recall is not None:
        floors = limits.min_recall
        named = floors if isinstance(floors, dict) else dict.fromkeys(candidate["recall"], floors)
        asked += [_at_least(f"recall of {label}", candidate["recall"][label], floor) for label, floor in named.items()]
    return asked


def percent(share: float) -> str:
    """91.25 %, without zeros that say nothing, and never rounded to all or to none."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    if text == "100" and share < 1:
        return "> 99.99 %"
    if text == "0" and share > 0:
        return "< 0.01 %"
    return f"{text} %"


def some(names: Mapping[str, Any] | list[str], most: int = 8, between: str = ", ") -> str:
    """The names, or the first of them and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return between.join(listed[:most]) + more


def _at_least(name: str, value: float, limit: float) -> dict[str, Any]:
    sentence = f"{name} is {percent(value)}, {_beside(value, limit)}"
    return {"name": name, "limit": limit, "value": value, "passed": value >= limit, "sentence": sentence}


def _regressions(limit: float, comparison: Mapping[str, Any], name: str, other: str) -> dict[str, Any]:
    gate: dict[str, Any] = {"name": name, "limit": limit}
    if comparison["skipped"] is not None:
        sentence = f"{name} (at most {percent(limit)}) were not counted: {comparison['skipped']}"
        return {**gate, "value": None, "passed": None, "sentence": sentence}
    flips = comparison["negative_flips"]
    share = flips["share"]
    sentence = (
        f"{name} are {percent(share)} (images that only {other} answers right: {flips['count']}), "
        f"{_beside(share, limit)}"
    )
    return {**gate, "value": share, "passed": share <= limit, "sentence": sentence}


def _beside(value: float, limit: float) -> str:
    place = "above" if value > limit else "below" if value < limit else "on"
    return f"{place} the limit of {percent(limit)}"
