"""Standard mode (`cluster.modes`): KServe from 0.21 on splits a service by `spec.canary` and the weights of HTTPRoutes.

Deployments and Services stand where Knative has revisions, and their names are what the verbs go by
(docs/facts.md#standard-mode; docs/standard-mode.md).
"""

from model_release.cluster.standard.rollout import (
    assess_promoted,
    assess_staged,
    baseline_of,
    check_kept,
    check_untouched,
    death_of,
    has_staged,
    plan_change,
    promotion,
    split,
    stable_template,
    stage_patch,
)
from model_release.cluster.standard.settle import assess_rolled_back, is_clean, step, stopped

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
