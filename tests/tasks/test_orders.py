"""How the tasks of a release take a person's order, and the DAGs from which it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from model_release.cluster.release import Cause, Order, Owner, Phase, Release
from model_release.errors import RolledBack, StoreUnavailable
from model_release.judging.record import Record
from model_release.release import emergency as orders
from model_release.release.emergency import ByHand
from model_release.spec import ModelSpec
from model_release.tasks import connections, emergency, records
from model_release.tasks.emergency import emergency_dags
from model_release.tasks.service import ReleasedService

from .parsing import HEAVY, Parsing

PROJECT = Path(__file__).resolve().parents[2]
WHEN = "2026-03-01T02:00:00.000+00:00"
OWNER = Owner("release_digits", "manual__1", "http://airflow/1", "http://airflow")


def order(kind: Any, revision: str = "m-00002") -> Order:
    return Order(kind, "anna", "because", WHEN, revision)


def test_no_task_goes_on_after_an_order_to_roll_back(spec: ModelSpec, context: Any) -> None:
    claim = Release(OWNER, order=order("roll_back"))

    class Leases:
        def read(self, *_: str) -> Any:
            return SimpleNamespace(release=claim)

        def update(self, namespace: str, name: str, owner: Owner, change: Any) -> Any:
            return SimpleNamespace(release=change(claim))

    released = object.__new__(ReleasedService)
    released.spec, released.namespace, released.name = spec, "models", "digits"
    released.run = SimpleNamespace(dag_id=OWNER.dag_id, run_id=OWNER.run_id, url="", installation=OWNER.installation)
    released.leases = Leases()
    for forward in (released.claim, released.baseline, lambda: released.note(phase=Phase.OPEN)):
        with pytest.raises(RolledBack, match="Rolled back by anna: because"):
            forward()
    assert released.held() == claim
    assert released.note(going_back=True, phase=Phase.CLOSING).phase is Phase.CLOSING
    with pytest.raises(RolledBack, match="Rolled back by anna: because"):
        released.resumed()
    claim = Release(OWNER, trouble="task canary failed: lost")
    assert released.resumed() == Release(OWNER), "what had failed in a run that was cleared is over"


class TestTheDags:
    def test_each_model_has_two_that_ask_for_a_reason(self, spec: ModelSpec) -> None:
        dags = emergency_dags(spec)
        assert [(name, dag.task_ids, dag.schedule) for name, dag in dags.items()] == [
            ("rollback_digits", ["roll_back"], None),
            ("promote_digits", ["promote"], None),
        ]
        for dag in dags.values():
            for reason in ({}, {"reason": ""}, {"reason": "no"}):
                with pytest.raises(ParamValidationError):
                    _resolved(dag, reason)
            assert _resolved(dag, {"reason": "users complain"}) == {"reason": "users complain"}

    def test_their_file_is_light(self, parsing: Parsing) -> None:
        code = (
            "import json, runpy, sys\n"
            f"made = runpy.run_path({str(PROJECT / 'dags' / 'emergency.py')!r})\n"
            "both = {'rollback_digits', 'promote_digits'} <= set(made)\n"
            f"print(json.dumps([both, sorted(set({HEAVY!r}) & set(sys.modules))]))"
        )
        assert parsing(code) == [True, []]

    @pytest.mark.parametrize("store_is_there", [True, False])
    def test_a_roll_back_with_no_release_under_way_leaves_a_record(
        self, spec: ModelSpec, context: Any, monkeypatch: pytest.MonkeyPatch, store_is_there: bool
    ) -> None:
        record = Record.new("r", model="digits", service="s", version=None, started=WHEN)
        seen: list[Any] = []

        def change(_: Any, run: Any, edit: Any) -> None:
            if not store_is_there:
                raise StoreUnavailable("S3 does not answer")
            edit(record)

        def act(services: Any, leases: Any, namespace: str, name: str, person: Any, **more: Any) -> ByHand:
            seen.append((namespace, name, person, more["prove"] is not None))
            return ByHand("models/digits: digits-00001 has all of the traffic", alone=True)

        lines: list[str] = []
        log = SimpleNamespace(warning=lambda line, *rest: lines.append(line % rest), info=lambda *_: None)
        monkeypatch.setattr(emergency.RollBackNow, "log", log)
        monkeypatch.setattr(connections, "cluster", _no_cluster)
        monkeypatch.setattr(records, "change", change)
        monkeypatch.setattr(orders, "roll_back_now", act)
        context["dag_run"].triggering_user_name = "anna"
        context["dag_run"].dag_id = "rollback_digits"
        context["params"] = {"reason": "users complain"}
        task = emergency.RollBackNow(task_id="roll_back", spec=spec)
        for _ in range(2):
            assert task.execute(context) == "models/digits: digits-00001 has all of the traffic"
        namespace, name, person, proves = seen[0]
        assert (namespace, name, person.name, person.reason, proves) == (
            "models", "digits", "anna", "users complain", True,
        )  # fmt: skip
        assert person.owner.dag_id == "rollback_digits"
        if store_is_there:
            assert (record.outcome, record.cause) == ("rolled_back", Cause.PERSON)
            assert record.reason.startswith("Rolled back by anna: users complain (models/digits: digits-00001 has")
            assert len(record.approvals) == 1
        else:
            assert lines.count("Done, and not recorded: S3 does not answer") == 2


def _resolved(dag: Any, given: dict[str, Any]) -> dict[str, Any]:
    params = dag.params.__copy__()
    for name, value in given.items():
        params[name] = value
    params.validate()
    return dict(params.dump())


def _no_cluster(*_: object) -> Any:
    from kubernetes.client import ApiClient

    return ApiClient()
