"""The 12 derived scenarios, step for step, and the derived status objects: both must come out of the rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sandbox.interfaces import Phase

DATA = Path(__file__).parents[2] / "data"
SCENARIOS = json.loads((DATA / "canary-traffic-traces.json").read_text())
EXAMPLES = {e["name"]: e["status"] for e in json.loads((DATA / "isvc-status-examples.json").read_text())}
SERVICE, R1, R2 = "classifier-vit-predictor", "classifier-vit-predictor-00001", "classifier-vit-predictor-00002"
TAGGED = {"serving.kserve.io/enable-tag-routing": "true"}


def without_urls(component: Any) -> Any:
    """A component's status in the form of the traces: rollout names and traffic, always a list, without URLs."""
    names = ("latestCreatedRevision", "latestReadyRevision", "latestRolledoutRevision", "previousRolledoutRevision")
    traffic = [{k: v for k, v in t.items() if k != "url"} for t in component.get("traffic", [])]
    return {k: component[k] for k in names if k in component} | {"traffic": traffic}


async def take(stack: Any, manifest: Any, step: dict[str, Any], tagged: bool) -> None:
    action, spec = step["action"], step["spec"]
    if became := re.fullmatch(r"revision (\d+) Ready=(\w+)", action):
        # Ready=False: the container ends with an error, which a revision tells at once.
        phase = {"True": Phase.READY, "False": Phase.CRASHED}[became[2]]
        code = 1 if phase is Phase.CRASHED else None
        await stack.become(f"{SERVICE}-{became[1]}", phase, "boom" if code else "", code)
        return
    if "RACE" in action:
        stack.race(SERVICE)
    annotations = TAGGED if tagged else None
    percent = spec.get("canaryTrafficPercent")
    await stack.apply(manifest("classifier-vit", spec["template"], percent, "canary", annotations))


def test_all_recorded_scenarios_are_here() -> None:
    assert len(SCENARIOS) == len({s["scenario"] for s in SCENARIOS}) == 12


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s["scenario"] for s in SCENARIOS])
async def test_scenario_step_for_step(make_stack: Any, manifest: Any, scenario: dict[str, Any]) -> None:
    stack = make_stack(namespace="canary")
    tagged = scenario["scenario"] == "tag_routing"
    for step in scenario["steps"]:
        await take(stack, manifest, step, tagged)
        isvc, service = stack.isvc("classifier-vit"), stack.service(SERVICE)
        component = isvc["status"]["components"]["predictor"]
        expected = {k: v for k, v in step["status.components.predictor"].items() if v is not None}
        assert without_urls(component) == expected, step["action"]
        assert service["spec"]["traffic"] == step["ksvc.spec.traffic"], step["action"]
        assert stack.effective("classifier-vit") == step["effectiveTraffic"], step["action"]
        host = "classifier-vit.canary.localhost"
        served = {name: percent for name, percent in step["effectiveTraffic"].items() if percent}
        assert stack.router.routes.get(host, {}) == served, step["action"]
        generations = isvc["metadata"]["generation"], service["metadata"]["generation"]
        assert generations == (step["isvcGeneration"], step["ksvcGeneration"]), step["action"]
        assert isvc["status"]["observedGeneration"] == step["ksvcGeneration"], step["action"]


def without_times(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status["conditions"]]
    return {**status, "conditions": conditions}


def like(example: str) -> dict[str, Any]:
    return without_times(EXAMPLES[example])


async def example(make_stack: Any, manifest: Any, tagged: bool = False) -> Any:
    """The service of the examples with r1 ready at 100 % and r2 starting as a canary of 30."""
    stack = make_stack("example.com", "canary")
    annotations = TAGGED if tagged else None
    await stack.apply(manifest("classifier-vit", "v1", None, "canary", annotations))
    stack.first = without_times(stack.isvc("classifier-vit")["status"])
    await stack.become(R1)
    stack.second = without_times(stack.isvc("classifier-vit")["status"])
    stack.workloads.set(R2, Phase.DOWNLOADING, namespace="canary")
    await stack.apply(manifest("classifier-vit", "v2", 30, "canary", annotations))
    await stack.become(R2, Phase.DOWNLOADING)
    return stack


def status(stack: Any) -> dict[str, Any]:
    return without_times(stack.isvc("classifier-vit")["status"])


async def test_status_of_a_release_that_is_promoted_and_taken_back_late(make_stack: Any, manifest: Any) -> None:
    stack = await example(make_stack, manifest)
    assert stack.first == like("01-first-deploy-starting")
    assert stack.second == like("02-v1-ready")
    assert status(stack) == like("03-canary-applied-not-ready")
    await stack.become(R2)
    assert status(stack) == like("04-canary-open")
    await stack.apply(manifest("classifier-vit", "v2", None, "canary"))
    assert status(stack) == like("05-promoted")
    await stack.apply(manifest("classifier-vit", "v2", 0, "canary"))
    assert status(stack) == like("07-late-rollback")


async def test_status_of_a_rollback_and_of_tag_routing(make_stack: Any, manifest: Any) -> None:
    stack = await example(make_stack, manifest, tagged=True)
    await stack.become(R2)
    assert status(stack) == like("04b-canary-open-tag-routing")
    untagged = await example(make_stack, manifest)
    await untagged.become(R2)
    await untagged.apply(manifest("classifier-vit", "v2", 0, "canary"))
    assert status(untagged) == like("06-rolled-back-0")


async def test_status_of_a_download_that_fails_before_and_after_the_deadline(make_stack: Any, manifest: Any) -> None:
    stack = await example(make_stack, manifest)
    message = EXAMPLES["08-canary-storage-init-fails-early"]["modelStatus"]["lastFailureInfo"]["message"]
    await stack.become(R2, Phase.DOWNLOAD_FAILED, message, 1)
    assert status(stack) == like("08-canary-storage-init-fails-early")
    await stack.become(R2, Phase.DOWNLOADING)  # the next attempt does not hide the failure of the last one
    assert status(stack)["modelStatus"] == like("08-canary-storage-init-fails-early")["modelStatus"]
    stack.controller._revisions._is_late = lambda revision, grace=0.0: True
    await stack.become(R2, Phase.DOWNLOAD_FAILED, "...", 1)
    assert status(stack) == like("09-canary-failed-deadline")


async def test_status_of_a_container_that_crashes_and_recovers(make_stack: Any, manifest: Any) -> None:
    stack = await example(make_stack, manifest)
    await stack.become(R2, Phase.CRASHED, "ModuleNotFoundError: No module named 'foo'\n", 1)
    expected = like("10-canary-container-crash")
    # The example cuts the message in modelStatus and not in the conditions; both are the same log lines.
    expected["modelStatus"]["lastFailureInfo"]["message"] = "ModuleNotFoundError: No module named 'foo'\n"
    assert status(stack) == expected
    await stack.become(R2, Phase.STARTING)
    assert status(stack)["conditions"] == expected["conditions"]
    await stack.become(R2)
    healed = status(stack)
    assert healed["modelStatus"]["transitionStatus"] == "UpToDate"
    assert healed["modelStatus"]["lastFailureInfo"]["reason"] == "ModelLoadFailed"  # never cleared
    assert stack.effective("classifier-vit") == {R2: 30, R1: 70}
