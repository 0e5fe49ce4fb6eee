"""A service with users and two good versions of a model, and what is seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import psutil
import requests
from tests.patience import LIMIT, until

from sandbox import process

from .harm import Harm
from .models import BAD, DAG, LATE, MODELS, NAME, RATE, SERVICE, model_file
from .releases import Release, failures


@dataclass
class Scene(Harm):
    """Built once for all faults. Each fault starts and ends with a service at rest."""

    versions: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    # What there is

    @cached_property
    def airflow(self) -> Any:
        """Airflow's API, signed in to once: it is asked several times a second."""
        return self.live.airflow

    @property
    def service(self) -> Any:
        return self.live.service(NAME)

    @property
    def claim(self) -> Any:
        return self.live.lease(NAME).release

    @property
    def stable(self) -> str:
        """The version in the service's spec."""
        return str(self.service.storage_uri).rstrip("/").rsplit("/", 1)[-1]

    @property
    def other(self) -> str:
        """The version that is not live."""
        return next(name for name in self.versions if name != self.stable)

    @cached_property
    def bad(self) -> str:
        """A version that fails one request in seven; published when a fault first asks for it."""
        from sandbox.digits import make_candidate

        trained, before = self.live.state / "trained" / "bad", set(self.stored())
        make_candidate("bad", trained, lambda _: None)
        shutil.copytree(
            trained, self.live.project / "candidates" / "faults-bad" / "20260101T000000", dirs_exist_ok=True
        )
        run = self.live.finished(BAD, self.airflow.trigger(BAD, {"rollout": "none"}))
        assert run["state"] == "success"
        (made,) = set(self.stored()) - before
        return made

    def answers(self) -> dict[str, Counter[str]]:
        load = self.live.status["load"] or {"answers": {}}  # nothing, until the first users were answered
        return {name: Counter(counts) for name, counts in load["answers"].items()}

    def record_names(self) -> list[str]:
        found = self.live.store(f"s3://models/{NAME}/").names("releases/")
        return [f"releases/{name}" for name in found if name.endswith(".json")]

    # What is done to it

    def release(self, version: str | None = None, dag: str = DAG, **conf: Any) -> Release:
        """Starts a release of the version that is not live, or of the one that is named; "": the newest candidate's."""
        conf |= {"version": version or self.other} if version != "" else {}
        before = self.answers()
        return Release(self, dag, self.airflow.trigger(dag, conf), str(conf.get("version")), before)

    def release_in_silence(self, version: str, dag: str) -> Release:
        """Starts a release of it while nobody asks this service anything. Returns when its canary is open and watched;
        with `users` the evidence comes."""
        self.live.sandbox("load", "--service", "models/elsewhere")
        one = self.release(version, dag=dag)
        one.watching()
        return one

    def build(self, **conf: Any) -> Release:
        """Starts a release of a candidate that was never built: the first one, with one number of its processor
        changed."""
        folder = self.live.project / "candidates" / NAME
        made = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        shutil.copytree(folder / "20260101T000000", made)
        said = json.loads((made / "preprocessor_config.json").read_text())
        mean = 0.5 - len(list(folder.iterdir())) / 1000
        (made / "preprocessor_config.json").write_text(json.dumps({**said, "image_mean": [mean] * 3}))
        before = self.answers()
        return Release(self, DAG, self.airflow.trigger(DAG, conf), "", before)

    def parse(self, *dags: str) -> None:
        """Has Airflow read the files of these DAGs now, and not in half a minute."""
        for dag in dags:
            self.airflow.wait_for_dag(dag)
            token = self.airflow.call("GET", f"/dags/{dag}")["file_token"]
            self.airflow.call("PUT", f"/parseDagFile/{token}")

    def order(self, dag: str, reason: str) -> tuple[str, str]:
        """Starts `rollback_…` or `promote_…` from its form: the run's state in the end, and what its task said."""
        return self.ordered(dag, self.airflow.trigger(dag, {"reason": reason}))

    def is_over(self, dag: str, run_id: str) -> bool:
        return self.airflow.run(dag, run_id)["state"] in ("success", "failed")

    def ordered(self, dag: str, run_id: str) -> tuple[str, str]:
        """How an order ended that was given in this run."""
        state = str(self.live.finished(dag, run_id)["state"])
        task = "roll_back" if dag.startswith("rollback_") else "promote"
        key = "return_value" if state == "success" else "trouble"
        return state, str(self.airflow.xcom(dag, run_id, task, key))

    def command(self, *words: str, check: bool = True) -> str:
        """`python -m model_release …` as a person types it."""
        kubeconfig = str(self.live.state / "kubeconfig.yaml")
        models = str(self.live.project / "include" / "models")
        command = [sys.executable, "-m", "model_release", *words, "--kubeconfig", kubeconfig, "--models", models]
        env = {**os.environ, "PYTHONPATH": str(self.live.project / "plugins")}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sweep(self) -> tuple[str, list[str]]:
        """Starts the DAG `sweep`, and waits for its end: the run's state and the lines of its result."""
        run_id = self.airflow.trigger("sweep")
        state = self.live.finished("sweep", run_id)["state"]
        return state, list(self.airflow.xcom("sweep", run_id, "sweep") or [])

    def taken_back(self, revision: str) -> str:
        """Returns when this revision has all of the traffic, though a canary was open; why, as the lease has it."""
        until(
            lambda: bool(self.service.serving == {revision: 100}),
            lambda: f"{self.service.serving}, and not all on {revision}; {self.claim}",
        )
        return str(self.claim.closed)

    def end_all(self) -> None:
        """Ends every release as a person would, after mending what was broken, and waits until the last has settled."""
        self.api_mended()
        for part in ("prometheus", "s3", "guard"):
            self.live.sandbox("start", part)
        for model in MODELS:
            self.pause(f"release_{model}", paused=False)
            for run in self.airflow.call("GET", f"/dags/release_{model}/dagRuns", params={"limit": 500})["dag_runs"]:
                if run["state"] in ("queued", "running"):
                    body = {"state": "failed"}
                    self.airflow.call("PATCH", f"/dags/release_{model}/dagRuns/{run['dag_run_id']}", json=body)
        until(lambda: self.live.lease(NAME).holder is None, lambda: "the service is still held")

    # What is seen from outside

    def at_rest(self, version: str) -> str:
        """One revision, of this version's content, has all of the traffic, in the spec, in the status and at the
        front door; it answered a smoke prediction; nobody holds the lease. Returns the revision."""
        service, lease = self.service, self.live.lease(NAME)
        revision = str(service.latest_created)
        assert service.canary_percent is None
        assert service.storage_uri == f"s3://models/{NAME}/versions/{version}/"
        assert service.serving == {revision: 100}
        assert service.rolled_out == service.latest_ready == revision
        assert lease.holder is None
        assert self.was_proven(revision)
        assert self.who_answers(30) == {revision: 30}
        assert self.half_versions() == []
        assert self.building() == []
        return revision

    def met(self, answers: dict[str, Counter[str]], by_hand: Collection[str] = ()) -> set[str]:
        """The revisions that users met; each of them must have answered a smoke prediction, but for those that
        somebody's hand made and gave traffic."""
        met = {name for name, counts in answers.items() if counts.total() and name != "-"}
        unproven = [name for name in met - set(by_hand) if not self.was_proven(name)]
        assert unproven == [], "users met a revision that had answered nobody"
        return met

    def stored(self) -> list[str]:
        """The names of all whole versions."""
        return [version.name for version in self.live.store(f"s3://models/{NAME}/").versions()]

    def users(self) -> None:
        """They come (again), and are answered."""
        self.live.sandbox("load", "--service", SERVICE, "--rate", str(RATE))
        before = self.answers().get(str(self.service.rolled_out), Counter()).total()
        until(
            lambda: self.answers().get(str(self.service.rolled_out), Counter()).total() > before,
            lambda: f"no user is answered: {self.live.status}",
        )  # fmt: skip

    def half_versions(self) -> list[str]:
        """Prefixes in the store that some version could be mistaken for."""
        from model_release.store.clients import objects
        from model_release.store.objects import address

        store = self.live.store(f"s3://models/{NAME}/")
        whole = {version.name for version in store.versions()}
        where = address(store.uri)
        return sorted(set(objects(store._client, where).folders(f"{where.prefix}versions/")) - whole)

    def building(self) -> list[str]:
        """Processes of a build that outlived their task."""
        found = []
        for one in process.processes(self.live.state):
            with contextlib.suppress(psutil.Error):
                if "model_release.build" in (line := " ".join(one.cmdline())):
                    found.append(line)
        return found

    def runs(self, revision: str) -> bool:
        """Whether it has pods: one without traffic keeps them for a while."""
        return process.processes(self.live.state, f"models/{revision}") != []

    def was_proven(self, revision: str) -> bool:
        """Whether some task's log says that this revision answered its smoke prediction."""
        logs = (self.live.state / "airflow" / "logs").rglob("*.log")
        said = rf"{revision} answers \d+ images"
        return any(
            re.search(said, log.read_text(errors="replace")) for log in logs if log.stat().st_mtime >= self.since
        )

    def who_answers(self, count: int) -> Counter[str]:
        """The revisions that answer at the front door."""
        from sandbox.digits import images

        front_door = self.live.status["parts"]["envoy"]["url"]
        body = {"instances": [{"data": _base64(images(1)[0])}]}
        seen: Counter[str] = Counter()
        with requests.Session() as http:
            http.trust_env = False
            for _ in range(count):
                headers = {"Host": f"{NAME}.models.localhost"}
                answer = http.post(f"{front_door}/v1/models/{NAME}:predict", json=body, headers=headers, timeout=LIMIT)
                seen[f"{answer.headers.get('x-revision')}" if answer.ok else f"{answer.status_code}"] += 1
        return seen

    def end(
        self, release: Release, version: str, *, failing: Collection[str] = (), by_hand: Collection[str] = ()
    ) -> End:
        """Looks from outside at how it ended: at rest on `version`, no user failed but on `failing`, or met a revision
        that was never proven but for those made `by_hand`."""
        revision, answers = self.at_rest(version), release.answers()
        self.met(answers, by_hand)
        assert set(failures(answers)) <= set(failing)
        return End(revision, answers, sum(answers.get(name, Counter()).total() for name in by_hand))

    def failing(self, end: End) -> set[str]:
        """The revisions on which users failed; `-` where nobody answered."""
        return set(failures(end.answers))

    def row(self, fault: str, stage: str, release: Release, version: str, end: End, ended: str = "") -> None:
        """A cell of the table: only what was checked and seen."""
        which = "the candidate" if version == release.candidate else "the baseline's version"
        failed = failures(end.answers)
        users = f"{sum(counts.total() for counts in end.answers.values())}, {sum(failed.values())} failed"
        users += f" ({', '.join(failed)})" if failed else ""
        users += f", {end.by_hand} answered by the revision that the hand made" if end.by_hand else ""
        said = release.sentence()
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0].split("::")[-1]
        ended = ended or said.split(":")[0]
        traffic = f"{end.revision}: {which}"
        self.rows.append(Row(test, fault, stage, ended, said, traffic, users, f"{release.dag} {release.run_id}"))


@dataclass(frozen=True)
class End:
    """What was seen from outside after a release."""

    revision: str
    answers: dict[str, Counter[str]]
    by_hand: int = 0  # requests that were answered by a revision which no release made


@dataclass(frozen=True)
class Row:
    """One fault at one stage, and how the release ended."""

    test: str
    fault: str
    stage: str
    ended: str
    sentence: str
    traffic: str
    users: str
    release: str


def following(revision: str) -> str:
    """The name of the revision that KServe makes next."""
    name, _, number = revision.rpartition("-")
    return f"{name}-{int(number) + 1:05d}"


def built(live: Any) -> Iterator[Scene]:
    """The first version goes live, the second is built and published; then the users arrive."""
    from sandbox.digits import make_candidate

    scene = Scene(live)
    for model in MODELS:
        (live.project / "include" / "models" / f"{model}.yaml").write_text(model_file(model))
    for candidate, model in (("first", NAME), ("better", "faults-late")):
        # Where `make release` trains them, too: once for a whole session.
        trained = live.state / "trained" / candidate
        make_candidate(candidate, trained, lambda _: None)
        shutil.copytree(trained, live.project / "candidates" / model / "20260101T000000")
    scene.parse("release_digits", "rollback_digits", "sweep")
    for dag in (*(f"{kind}_{model}" for model in MODELS for kind in ("release", "rollback", "promote")), "sweep"):
        live.airflow.wait_for_dag(dag)
    runs = [(DAG, live.airflow.trigger(DAG)), (LATE, live.airflow.trigger(LATE, {"rollout": "none"}))]
    for dag, run_id in runs:
        run = live.finished(dag, run_id)
        assert run["state"] == "success", live.airflow.xcom(dag, run_id, "report")
    scene.versions = [version.name for version in live.store(f"s3://models/{NAME}/").versions()]
    assert len(scene.versions) == 2
    scene.users()
    try:
        yield scene
    finally:
        live.sandbox("load", "--end", check=False)
        scene.stop()


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode()
