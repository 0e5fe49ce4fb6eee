"""Knative mode (`cluster.modes`): KServe has Knative keep a revision for each template, and split the traffic by their
percents (docs/facts.md#status-lags-behind-spec)."""

from model_release.cluster.dead import death_of
from model_release.cluster.knative.rollout import (
    assess_promoted,
    assess_staged,
    baseline_of,
    check_kept,
    check_untouched,
    has_staged,
    plan_change,
    promotion,
    split,
    stable_template,
    stage_patch,
)
from model_release.cluster.knative.settle import assess_rolled_back, is_clean, step, stopped

__all__ = [
    "assess_promoted",
    "assess_rolled_back",
    "assess_staged",
    "baseline_of",
    "check_kept",
    "check_untouched",
    "death_of",
    "has_staged",
    "is_clean",
    "plan_change",
    "promotion",
    "split",
    "stable_template",
    "stage_patch",
    "step",
    "stopped",
]
