"""Each recording of the real controllers, played on the sandbox: after each action both have come to the same."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.interfaces import Phase, PodState, RevisionKey, RevisionTemplate
from sandbox.kube import Timing, recording, routing
from sandbox.kube.errors import ApiError
from sandbox.kube.faults import Fault
from sandbox.kube.ownership import Writer
from sandbox.kube.patches import merge
from sandbox.kube.recording import Recording, Step
from sandbox.kube.resources import (
    DEPLOYMENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    INGRESSES,
    KSERVICES,
    REVISIONS,
)

DATA = Path(__file__).parents[2] / "data" / "real"
NAMES = recording.names(DATA)
WRITER = Writer("recorded")
# The settings of the recorded KServe.
INGRESS = {"disableIstioVirtualHost": True, "domainTemplate": "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}"}


class Pods:
    """The recorded kubelet: pods by the version that they serve, as it was last said of that version.

    Each is pending at first, until `grow`; those that begin while their version is `held` are until it is let go.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PodState] = {}
        self.held: set[str] = set()
        self.running: dict[RevisionKey, RevisionTemplate] = {}
        self._young: set[RevisionKey] = set()

    async def ensure(self, template: RevisionTemplate) -> None:
        if template.key not in self.running:
            self._young.add(template.key)
        self.running[template.key] = template

    async def remove(self, key: RevisionKey) -> None:
        self.running.pop(key, None)
        self._young.discard(key)

    def become(self, version: str, state: PodState) -> None:
        self.phases[version] = state
        self.held.clear()
        self.grow()

    def grow(self) -> None:
        self._young = {key for key in self._young if version_of(self.running[key]) in self.held}

    def state(self, key: RevisionKey) -> PodState:
        template = self.running.get(key)
        if template is None:
            return PodState(Phase.PENDING)
        pods = tuple(f"{key.name}-deployment-{number}" for number in range(template.replicas))
        found = self.phases.get(version_of(template), PodState(Phase.READY))
        if key in self._young:
            found = PodState(Phase.PENDING)
        ready = template.replicas if found.phase is Phase.READY else 0
        return PodState(found.phase, ready, found.message, found.exit_code, pods)

    def log(self, key: RevisionKey, tail: int | None = None) -> str:
        return ""


def version_of(template: RevisionTemplate) -> str:
    return template.storage_uri.rstrip("/").rsplit("/", 1)[-1]


def test_the_recordings_are_all_here() -> None:
    assert sorted(path.name for path in DATA.glob("*.json.gz")) == NAMES
    assert len(NAMES) == 25


MODE = {"serving.kserve.io/deploymentMode": "Standard"}
STOP = "serving.kserve.io/stop"
RESOURCES = {"cpu": "1", "memory": "1Gi"}
# What the notes of the recordings say was done: faults that begin, and those that end.
BEGINS = {
    "webhook stopped": "knative-webhook",
    "controller stopped": "knative",
    "gateway's controller stopped": "gateway",
}
ENDS = ("webhook goes on", "controller goes on", "it goes on")
LET_GO = "the new stable pod is ready"


class Player:
    """Does on the sandbox what was done to the real cluster."""

    def __init__(self, recorded: Recording, stack: Any) -> None:
        self.recorded, self.stack, self.pods = recorded, stack, stack.workloads
        self.namespace = stack.namespace

    async def play(self, step: Step, following: Step | None) -> tuple[int, str | None] | None:
        """The answer to a write; everything has come to rest when it returns."""
        answer = None
        match step.action:
            case "write":
                if following is not None and following.said.get("text") == LET_GO:
                    self.pods.held.add(step.said["said"]["version"])
                answer = self._write(step.said)
            case "pods":
                self.pods.become(step.said["version"], self._state(step.said["become"]))
            case "delete":
                self.stack.registry.delete(INFERENCE_SERVICES, self.namespace, "digits")
            case "delete Revision":
                # The recorded kubelet leaves the pods pending that come after those that ended.
                key = RevisionKey(self.namespace, step.said["name"])
                self.pods.held.add(version_of(self.pods.running[key]))
                self.stack.registry.delete(REVISIONS, self.namespace, key.name)
            case "note":
                self._note(step.said["text"])
        await self.stack.settle()
        self.pods.grow()
        await self.stack.settle()
        return answer

    def _note(self, text: str) -> None:
        active = self.stack.faults.active
        if text in BEGINS:
            active.append(Fault(away=BEGINS[text]))
        elif text in ENDS:
            active.clear()
        elif text == LET_GO:
            self.pods.held.clear()
        else:
            raise AssertionError(f"{self.recorded.scenario}: nobody knows what {text!r} does")

    def _state(self, become: str) -> PodState:
        phase = {
            "ready": Phase.READY,
            "pending": Phase.PENDING,
            "crash": Phase.CRASHED,
            "download_failed": Phase.DOWNLOAD_FAILED,
        }[become]
        failed = phase in (Phase.CRASHED, Phase.DOWNLOAD_FAILED)
        return PodState(phase, message=self._last_words() if failed else "", exit_code=1 if failed else None)

    def _last_words(self) -> str:
        """What the recorded container said when it ended, as the recorded Revision or KServe repeats it."""
        said = [one.object for step in self.recorded.steps for one in step.told if one.kind != "Event"]
        for obj in said:
            if found := re.search(r'"Container failed with: ([^"]*)"', json.dumps(obj)):
                return found[1]
        failures = [(obj.get("status") or {}).get("modelStatus", {}).get("lastFailureInfo", {}) for obj in said]
        return next((str(one["message"]) for one in failures if one), "boom")

    def _write(self, event: dict[str, Any]) -> tuple[int, str | None]:
        registry, said = self.stack.registry, event["said"]
        live = registry.store.get(registry.key(INFERENCE_SERVICES, self.namespace, "digits"))
        new = copy.deepcopy(live) if live else self._empty(event)
        if "spec" in event:
            new["spec"] = event["spec"]
        else:
            new = merge(new, {"spec": {"predictor": self._predictor(said)}})
        annotations = dict(said.get("annotations") or {}) | ({STOP: said["stop"]} if "stop" in said else {})
        new = merge(new, {"metadata": {"annotations": annotations}})
        try:
            if live is None:
                registry.create(INFERENCE_SERVICES, self.namespace, new, WRITER)
                return 201, None
            registry.update(INFERENCE_SERVICES, self.namespace, "digits", new, WRITER)
        except ApiError as refused:
            return refused.code, refused.message
        return 200, None

    def _empty(self, event: dict[str, Any]) -> dict[str, Any]:
        model = {"modelFormat": {"name": "pytorch"}, "resources": {"limits": RESOURCES, "requests": RESOURCES}}
        meta = {"name": "digits", "namespace": self.namespace, "annotations": MODE if "spec" in event else {}}
        return {"metadata": meta, "spec": {"predictor": {"minReplicas": 1, "model": model}}}

    @staticmethod
    def _predictor(said: dict[str, Any]) -> dict[str, Any]:
        predictor = {k: said[k] for k in ("timeout", "minReplicas", "maxReplicas") if k in said}
        if said["version"]:
            predictor["model"] = {"storageUri": f"s3://models/digits/versions/{said['version']}/"}
        if said["percent"] != "same":
            predictor["canaryTrafficPercent"] = said["percent"]
        return predictor


def normal(value: Any, namespace: str) -> Any:
    """Without times and without what is random; the recorded namespace under the sandbox's name."""
    text = json.dumps(value).replace(namespace, "models")
    text = re.sub(r'(ReplicaSet \\"[a-z0-9-]+)-[0-9a-f]+\\"', r'\1-HASH\\"', text)

    def bare(item: Any) -> Any:
        if isinstance(item, dict):
            return {k: bare(v) for k, v in item.items() if k not in ("lastTransitionTime", "lastUpdateTime")}
        return [bare(one) for one in item] if isinstance(item, list) else item

    return bare(json.loads(text))


def conditions(status: dict[str, Any] | None) -> dict[str, Any]:
    return {one["type"]: {k: v for k, v in one.items() if k != "type"} for one in (status or {}).get("conditions", [])}


def with_conditions(status: dict[str, Any] | None) -> dict[str, Any]:
    return {**(status or {}), "conditions": conditions(status)}


class Uids:
    """Uids by their pattern: which object of its name it is, the first, the second …"""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[str]] = {}

    def number(self, kind: str, obj: dict[str, Any]) -> int:
        seen = self._seen.setdefault((kind, obj["metadata"]["name"]), [])
        if obj["metadata"]["uid"] not in seen:
            seen.append(obj["metadata"]["uid"])
        return seen.index(obj["metadata"]["uid"])


def compared(kind: str, obj: dict[str, Any], uids: Uids) -> dict[str, Any]:
    """The part of an object that is held against the other's, in one form for both."""
    meta, spec, status = obj["metadata"], obj.get("spec", {}), obj.get("status")
    one: dict[str, Any] = {"uid": uids.number(kind, obj)} if "uid" in meta and kind != "Ingress" else {}
    one |= {k: meta.get(k, {}) for k in ("annotations", "labels") if kind in ("InferenceService", "Revision")}
    one |= {"generation": meta["generation"], "status": with_conditions(status)}
    match kind:
        case "InferenceService":
            return {**one, "spec": spec, "labels": meta.get("labels", {})}
        case "KnativeService":
            template = {k: spec["template"]["metadata"].get(k, {}) for k in ("annotations", "labels")}
            return {**one, "traffic": spec["traffic"], "template": template}
        case "Deployment":
            return {**one, "replicas": spec["replicas"]}
        case "HTTPRoute":
            return {**one, "spec": spec, "status": status}
        case "Ingress":
            rules = obj.get("rules") or spec["rules"]
            splits = {where: {r["hosts"][0]: split(r) for r in rules if r["visibility"] == where} for where in WHERE}
            acted = (status or {}).get("observedGeneration") == meta["generation"]
            return {**one, "status": conditions(status), "splits": splits, "acted on": acted}
    return one


def split(rule: dict[str, Any]) -> dict[str, int]:
    if "splits" in rule:
        return {one["serviceName"]: one["percent"] for one in rule["splits"]}
    return routing.splits(rule)


WHERE = ("ExternalIP", "ClusterLocal")
KINDS = {
    "InferenceService": INFERENCE_SERVICES,
    "KnativeService": KSERVICES,
    "Revision": REVISIONS,
    "Ingress": INGRESSES,
    "Deployment": DEPLOYMENTS,
    "HTTPRoute": HTTP_ROUTES,
}


def played(stack: Any) -> dict[tuple[str, str], Any]:
    return {
        (title, obj["metadata"]["name"]): obj
        for title, kind in KINDS.items()
        for obj in stack.registry.store.all(kind.id, stack.namespace)
    }


Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class LeftOut:
    """A difference that is known and stays, with its reason. The path begins with the kind of the object."""

    path: Path_
    reason: str
    scenario: str = ""  # "": in each recording


# All that the sandbox knowingly does not do as the real controllers did. Events are not compared: no reader decides
# by them.
LEFT_OUT = (
    LeftOut(
        ("KnativeService", "template", "annotations", "modelFormat"),
        "the recorded KServe has no `inferenceService` in its configmap, hence no list of annotations that a revision "
        "does not take over; the sandbox has KServe's own list, which names this one",
    ),
    LeftOut(
        ("Revision", "annotations"),
        "who made a revision, which routes name it and since when: Knative's garbage collector reads that, and the "
        "sandbox has none; what the template says is compared at the Knative Service",
    ),
    LeftOut(("Revision", "labels"), "as its annotations: the routing state, and uids that say what the owner says"),
    LeftOut(
        ("Revision", "status", "containerStatuses"), "digests of images: the sandbox asks no registry for its runtimes"
    ),
    LeftOut(
        ("Revision", "status", "conditions", "ContainerHealthy", "reason"),
        "Knative forgets this reason when it sees the Deployment before its own write of the status; Ready has it",
        "crash-restored",
    ),
    LeftOut(("Ingress", "splits", "ClusterLocal"), "nothing asks for hosts inside of the sandbox's cluster"),
    LeftOut(("HTTPRoute", "status", "parents", 0, "controllerName"), "the gateway's own name"),
)


def is_left_out(path: Path_, scenario: str) -> bool:
    return any(path[: len(one.path)] == one.path and one.scenario in ("", scenario) for one in LEFT_OUT)


def differences(one: Any, other: Any, path: Path_) -> list[tuple[Path_, str]]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(set(one) | set(other))
        return [d for key in keys for d in differences(one.get(key), other.get(key), (*path, key))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for n, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, (*path, n))]
    return [] if one == other else [(path, f"recorded {one!r}, played {other!r}")]


@pytest.fixture(scope="module")
def seen_before() -> dict[str, list[tuple[Path_, str]]]:
    """What each recording came to: they are played once."""
    return {}


@pytest.fixture
def play(make_stack: Any, seen_before: dict[str, list[tuple[Path_, str]]]) -> Any:
    """Every difference between the settled states of a recording, with the action after which it was seen."""

    async def once(name: str) -> list[tuple[Path_, str]]:
        if name not in seen_before:
            seen_before[name] = await played_through(make_stack, name)
        return seen_before[name]

    return once


async def played_through(make_stack: Any, name: str) -> list[tuple[Path_, str]]:
    recorded = recording.load(DATA / name)
    standard = recorded.scenario.startswith("standard")
    # The recorded deadline of 20 s is over at once: what is ready is not late, whatever the deadline.
    timing = Timing(progress_deadline=0.0) if recorded.scenario == "never-ready" else None
    stack = make_stack("example.com" if standard else "localhost", timing=timing, workloads=Pods(), ingress=INGRESS)
    player, real, ours = Player(recorded, stack), Uids(), Uids()
    found: list[tuple[Path_, str]] = []
    steps = list(recorded.settled())
    namespace = steps[0][1]["InferenceService", "digits"]["metadata"]["namespace"]
    for number, (step, objects) in enumerate(steps):
        following = steps[number + 1][0] if number + 1 < len(steps) else None
        answer = await player.play(step, following)
        where = f"after {step.at:.1f} s, {step.action} {json.dumps(step.said.get('said', step.said))}"
        expected = (step.said["answer"], step.said["message"]) if step.action == "write" else None
        seen = differences(expected, answer, ("answer",))
        there = {key: compared(key[0], normal(obj, namespace), real) for key, obj in objects.items()}
        here = {key: compared(key[0], normal(obj, "models"), ours) for key, obj in played(stack).items()}
        for kind, title in sorted(there | here):
            pair = there.get((kind, title)), here.get((kind, title))
            seen += [(path, f"{title}: {text}") for path, text in differences(*pair, (kind,))]
        found += [(path, f"{where}: {'.'.join(map(str, path))}: {text}") for path, text in seen]
    return found


@pytest.mark.parametrize("name", NAMES)
async def test_the_sandbox_does_what_the_real_controllers_did(play: Any, name: str) -> None:
    scenario = name.removesuffix(".json.gz")
    unknown = [text for path, text in await play(name) if not is_left_out(path, scenario)]
    assert not unknown, "\n".join(unknown)


async def test_what_is_left_out_is_left_out_for_a_reason_that_holds(play: Any) -> None:
    """An entry of the list that no recording needs any more has to go."""
    needed = {
        one
        for name in NAMES
        for path, _ in await play(name)
        for one in LEFT_OUT
        if path[: len(one.path)] == one.path and one.scenario in ("", name.removesuffix(".json.gz"))
    }
    assert needed == set(LEFT_OUT)
