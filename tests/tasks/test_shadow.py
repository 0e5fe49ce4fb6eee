"""Task smoke with a shadow: sample pictures, a canary at 0 % in the sandbox's real API, and a gateway that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.answering import CANARY, Answering, Said, answering, labels

from model_release.cluster import pairs as asking
from model_release.cluster import rollout
from model_release.cluster.lease import Lease
from model_release.cluster.progress import State, wait
from model_release.cluster.release import Order, Phase, Watched
from model_release.cluster.smoke import Gateway
from model_release.errors import RolledBack, ShadowFailed, StoreUnavailable
from model_release.judging.record import Record
from model_release.spec import ModelSpec
from model_release.tasks import connections, records
from model_release.tasks import shadow as shadowing
from model_release.tasks.run import Run
from model_release.tasks.serve import Smoke
from model_release.tasks.service import ReleasedService

from .cluster import Kube, wanted
from .conftest import SPEC

THREE, EIGHT = labels(three=0.9, eight=0.1), labels(eight=0.8, three=0.2)
SHADOW = {"from": "samples", "requests": 60, "max_changed": 0.05}


@dataclass
class Scene:
    """The task, on a release whose canary stands at 0 %. `changes`: every so many-th picture is another to it."""

    kube: Kube
    context: Any
    root: Path
    gateway: Answering
    record: Record
    changes: int = 1000
    meanwhile: Callable[[], None] = lambda: None
    asked: list[str] = field(default_factory=list)
    waited: list[tuple[float, Phase]] = field(default_factory=list)  # after the last picture: seconds, and how it stood

    def sleep(self, seconds: float) -> None:
        self.waited.append((seconds, self.phase))
        self.meanwhile()

    def smoke(self, shadow: dict[str, Any] | None = None, rollout: str = "auto") -> Any:
        spec = ModelSpec.model_validate(
            {**SPEC, "rollout": {**SPEC["rollout"], **({"shadow": shadow} if shadow else {})}}
        )
        self.context["params"]["rollout"] = rollout
        task = Smoke(task_id="smoke", root=self.root, spec=spec, first="go_live", direct="go_direct", canary="canary")
        return task.choose_branch(self.context)

    @property
    def phase(self) -> Phase:
        lease = self.kube.leases.read("models", "digits")
        assert lease is not None
        assert lease.release is not None
        return lease.release.phase


@pytest.fixture
def scene(
    kube: Kube, spec: ModelSpec, context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    run = Run.of(context, spec)
    released = ReleasedService(spec, run)
    assert isinstance(kube.leases.acquire("models", "digits", released.owner, "r1"), Lease)
    baseline = rollout.baseline_of(None, wanted(spec, "v1"))
    for version in ("v1", "v2"):
        asked = wanted(spec, version)
        template = rollout.stage(released.services, asked, baseline, by=released.owner.identity).template_digest
        found = wait(
            lambda a=asked, b=baseline, t=template: rollout.assess_staged(released.live(), a, b, t), 60, poll=0.01
        )
        assert found.state is State.READY
        if version == "v1":
            baseline = rollout.baseline_of(released.live(), wanted(spec, "v2"))
    canary = rollout.canary_of(kube.live(), baseline)
    known = {"canary": canary.revision, "template": canary.template, "started": canary.started}
    released.note(baseline=baseline, phase=Phase.STAGED, **known)
    folder = tmp_path / "project" / "samples"
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"{number}.png").write_bytes(str(number).encode())
    record = Record.new(run.release, model="digits", service="models/digits", version=None, started=records.now())

    def says(host: str, picture: bytes) -> Said:
        if picture == b"smoke":
            return THREE
        one.asked.append(host)
        one.meanwhile()
        return EIGHT if host == CANARY and int(picture) % one.changes == one.changes - 1 else THREE

    with answering(says) as gateway:
        one = Scene(kube, context, tmp_path / "project", gateway, record)
        sample = {"instances": [{"data": "c21va2U="}], "expected": [{"label": "three", "score": 0.9}]}
        store = SimpleNamespace(version=lambda name: name, smoke=lambda version: sample)
        context["ti"].xcoms["publish", "return_value"] = {"version": "v2", "uri": "s3://models/digits/versions/v2/"}
        monkeypatch.setattr(connections, "store", lambda _: store)
        monkeypatch.setattr(connections, "ingress", lambda: Gateway(gateway.url))
        monkeypatch.setattr(records, "change", lambda _spec, _run, edit: edit(record))
        monkeypatch.setattr("model_release.tasks.base.links.push", lambda *_: None)
        clock = SimpleNamespace(monotonic=lambda: sum(seconds for seconds, _ in one.waited), sleep=one.sleep)
        monkeypatch.setattr(shadowing, "time", clock)
        yield one


def test_a_canary_that_answers_as_stable_does_goes_on(scene: Scene) -> None:
    assert scene.smoke(SHADOW) == "canary"
    assert scene.phase is Phase.PROVEN
    told = scene.record.shadow
    assert told is not None
    assert (told["passed"], told["decision"], told["compared"], told["changed"]) == (True, "within", 60, 0)
    assert told["from"] == "samples"
    assert scene.asked.count(CANARY) == 60
    assert Record.from_json(scene.record.to_json()).shadow == told


def test_its_requests_are_scraped_before_the_canary_may_be_opened(scene: Scene) -> None:
    """Else they would be in its first window, hundreds of them beside a few users'."""
    scene.smoke(SHADOW)
    assert sum(seconds for seconds, _ in scene.waited) == 1.5, "half a window: it has two scrapes at least"
    assert {phase for _, phase in scene.waited} == {Phase.STAGED}


def test_run_again_it_asks_for_the_same_pictures(scene: Scene) -> None:
    shadow = {"from": "samples", "requests": 20}
    scene.smoke(shadow)
    first = {picture for picture in scene.gateway.pictures if picture != b"smoke"}
    scene.gateway.pictures.clear()
    assert scene.smoke(shadow) == "canary"
    assert {picture for picture in scene.gateway.pictures if picture != b"smoke"} == first
    assert len(first) == 20


def test_one_that_answers_otherwise_ends_before_any_user_and_says_what_changed(scene: Scene) -> None:
    scene.changes = 10
    with pytest.raises(ShadowFailed, match=r"three became eight (once|\d times)\. No user met the canary.$") as failed:
        scene.smoke(SHADOW)
    assert not failed.value.transient
    assert scene.phase is Phase.STAGED, "marked successful by hand it would still get no traffic"
    told = scene.record.shadow
    assert told is not None
    assert (told["passed"], told["decision"]) == (False, "beyond")
    assert str(failed.value).startswith(told["sentence"])
    assert scene.kube.live().serving == {"digits-predictor-00001": 100}


def test_without_a_limit_it_is_only_shown(scene: Scene) -> None:
    scene.changes = 10
    assert scene.smoke({"from": "samples"}) == "canary"
    assert scene.record.shadow is not None
    assert (scene.record.shadow["decision"], scene.record.shadow["changed"]) == ("observed", 6)


@pytest.mark.parametrize("shadow", [{"from": "nowhere"}, {"from": "samples", "max_changed": 0.02}])
def test_without_enough_samples_the_model_file_says_what_then(scene: Scene, shadow: dict[str, Any]) -> None:
    with pytest.raises(ShadowFailed, match=r"No pictures to compare by|149 are the least that can show it"):
        scene.smoke(shadow)
    assert scene.phase is Phase.STAGED
    assert scene.smoke({**shadow, "if_missing": "go"}) == "canary"
    assert scene.phase is Phase.PROVEN
    assert scene.record.shadow is not None
    assert scene.record.shadow["sentence"].endswith("It goes on without, by rollout.shadow.if_missing: go.")


def test_samples_that_are_away_for_a_moment_are_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise StoreUnavailable("s3://models/samples/: S3 does not answer")

    monkeypatch.setattr(connections, "s3", away)
    with pytest.raises(StoreUnavailable):
        scene.smoke({"from": "s3://models/samples/"})
    assert scene.smoke({"from": "s3://models/samples/", "if_missing": "go"}) == "canary"


def test_pictures_that_a_collector_removes_meanwhile_are_left_out(scene: Scene) -> None:
    """It removes the oldest one for each that it takes. No release is to end, or to go on unseen, for that."""
    scene.changes = 10
    samples = scene.root / "samples"

    def tidied() -> None:
        for number in (3, 30, 57):
            (samples / f"{number}.png").unlink(missing_ok=True)

    scene.meanwhile = tidied
    with pytest.raises(ShadowFailed, match=r"three became eight"):
        scene.smoke({**SHADOW, "if_missing": "go"})
    scene.changes = 1000
    for number in (3, 30, 57):
        (samples / f"{number}.png").write_bytes(str(number).encode())
    assert scene.smoke({"from": "samples", "max_changed": 0.06}) == "canary"
    told = scene.record.shadow
    assert told is not None
    assert told["decision"] == "within"
    assert told["asked"] == told["wanted"] == told["compared"] in (57, 58, 59)
    assert "of the first" not in told["sentence"]


def test_nobody_is_asked_where_there_is_nothing_to_compare_or_no_time(scene: Scene) -> None:
    assert scene.smoke(None) == "canary"
    assert scene.smoke(SHADOW, rollout="direct") == "go_direct"
    assert scene.asked == []
    assert scene.record.shadow is None


def test_a_try_that_ends_late_proves_no_other_canary(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was cleared while the store kept the first try waiting, and has staged another one by then."""
    lease = scene.kube.leases.read("models", "digits")
    assert lease is not None
    assert lease.release is not None
    owner = lease.release.owner

    def change(_spec: Any, _run: Any, edit: Callable[[Record], None]) -> None:
        edit(scene.record)
        scene.kube.leases.update(
            "models", "digits", owner, lambda now: replace(now, canary="digits-predictor-00003", template="another")
        )

    monkeypatch.setattr(records, "change", change)
    scene.smoke(SHADOW)
    assert scene.phase is Phase.STAGED


def test_a_canary_that_is_open_is_not_compared_once_more(scene: Scene) -> None:
    """The task was cleared in the middle of the canary: what the gateway has is no other hand's."""
    assert scene.smoke(SHADOW) == "canary"
    lease = scene.kube.leases.read("models", "digits")
    assert lease is not None
    assert lease.release is not None
    owner, asked = lease.release.owner, len(scene.asked)
    rollout.shift(scene.kube.services, lease.release.as_canary, 25)
    opened = (Watched(25, records.now()),)
    scene.kube.leases.update("models", "digits", owner, lambda now: replace(now, phase=Phase.OPEN, watches=opened))
    assert scene.smoke(SHADOW) == "canary"
    assert (scene.phase, len(scene.asked)) == (Phase.OPEN, asked)


@pytest.mark.parametrize("after", [0, 120], ids=["while pictures are asked", "while the last ones are scraped"])
def test_a_person_who_takes_the_release_back_is_heard_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(asking, "LOOK", 0.0 if not after else 1.0)
    lease = scene.kube.leases.read("models", "digits")
    assert lease is not None
    assert lease.release is not None
    owner, ordered = lease.release.owner, list[int]()
    order = Order("roll_back", "ada", "wrong model", records.now(), None)

    def take_back() -> None:
        if not ordered and len(scene.asked) >= after:
            ordered.append(1)
            scene.kube.leases.update("models", "digits", owner, lambda now: replace(now, order=order))

    scene.meanwhile = take_back
    with pytest.raises(RolledBack, match="by ada"):
        scene.smoke(SHADOW)
    assert len(scene.asked) < 120 or after
    assert scene.phase is not Phase.PROVEN


def test_a_limit_that_so_few_pictures_cannot_show_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="requests: 299 is the least"):
        ModelSpec.model_validate({**SPEC, "rollout": {"shadow": {"from": "x", "requests": 100, "max_changed": 0.01}}})
