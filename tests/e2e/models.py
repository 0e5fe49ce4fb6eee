"""Models of the tests' own in the live stack: each with a model file, a service, a store and candidates."""

from __future__ import annotations

import shutil
from typing import Any

import yaml

JUDGE = {
    "profile": "istio",
    "min_requests": 60,
    "design_effect": 1,
    "metrics": [{"name": "errors", "max_rate": 0.05}],
}


def model(live: Any, name: str, *, service: dict[str, Any] | None = None, **more: Any) -> None:
    """Writes its model file; `service` and `more` replace what it has for all."""
    content = {
        "model": name,
        "source": {"directory": f"candidates/{name}"},
        "service": {
            "name": name, "namespace": "models", "resources": {"cpu": "1", "memory": "1Gi"}, **(service or {})
        },
        "store": f"s3://models/{name}/",
        "rollout": {"steps": [50], "window": "2s", "deadline": "30m", "bake": "0s", "ready_within": "10m"},
        "judge": JUDGE,
        **more,
    }  # fmt: skip
    (live.project / "include" / "models" / f"{name}.yaml").write_text(yaml.safe_dump(content))


def candidate(live: Any, name: str, when: str, trained: str) -> None:
    """Offers one of the example's candidates, `first`, `better` or `bad`; it is trained where that was not yet done."""
    from sandbox.digits import make_candidate

    done = live.state / "trained" / trained
    make_candidate(trained, done)
    passing, target = (live.project / "candidates" / name / one for one in (f".{when}", when))
    shutil.copytree(done, passing)
    passing.rename(target)


def records(live: Any, name: str) -> list[dict[str, Any]]:
    """The decision records of its releases, oldest first."""
    store = live.store(f"s3://models/{name}/")
    # Beside the pictures of their evaluations, and the records of other models of the store.
    names = [one for one in store.names("releases/") if one.startswith(f"{name}-") and one.endswith(".json")]
    return sorted((store.read_json(f"releases/{one}")[0] for one in names), key=lambda record: record["started"])
