"""The model files of the service on which the faults are committed."""

from __future__ import annotations

from typing import Any

NAME, SERVICE = "faults", "models/faults"
DAG = "release_faults"
RATE = 40.0

MODEL = """
model: {model}
source: {{directory: candidates/{candidates}}}
service: {{name: faults, namespace: models, resources: {{cpu: "1", memory: 1Gi}}}}
store: s3://models/faults/
rollout:
  {{steps: [50], window: 2s, deadline: {deadline}, if_too_slow: go, bake: {bake}, ready_within: {ready},
   wait_for_lease: 5m}}
judge:
  profile: istio
  min_requests: {requests}
  design_effect: 1
  metrics: [{{name: errors, max_rate: {max_rate}}}]
{more}
"""
# Model files of one service, by the fault that each makes room for: the plain one, one whose time is short, one that
# only a person decides, one that bakes, one with a number that is none, one whose canary must be ready soon, one that
# waits for data for as long as a busy machine takes to start Prometheus again, one of the bad candidate with a limit
# that it breaks within seconds, one that asks a person before it promotes.
MODELS: dict[str, dict[str, Any]] = {
    "faults": {},
    "faults-late": {"candidates": "faults-late", "deadline": "12s"},
    "faults-asked": {"requests": 1_000_000, "deadline": "10m"},
    "faults-bake": {"bake": "40s"},
    "faults-nan": {"more": "  values: [{name: nothing, query: 'vector(0) / vector(0)', max: 1}]"},
    "faults-ready": {"ready": "20s"},
    "faults-patient": {"more": "  no_data_limit: 30"},
    "faults-bad": {"candidates": "faults-bad", "max_rate": 0.02},
    "faults-person": {"more": "approval: before_promote\nanswer_within: 10m"},
}
LATE, ASKED, BAKE, NAN, READY, PATIENT, BAD, PERSON = (f"release_{model}" for model in list(MODELS)[1:])


def model_file(model: str) -> str:
    """The text of its model file."""
    common = {"candidates": NAME, "deadline": "3m", "bake": "0s", "ready": "3m", "requests": 150, "more": ""}
    common["max_rate"] = 0.1
    return MODEL.format(**{**common, "model": model, **MODELS[model]})
