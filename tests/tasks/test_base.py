"""What all tasks have in common: a trouble is told in one line and kept for the report, and only some are retried."""

from __future__ import annotations

import inspect
import logging
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from model_release import errors
from model_release.errors import ClusterRefused, ReleaseError, StoreUnavailable
from model_release.spec import ModelSpec
from model_release.tasks.base import RETRIES, TROUBLE, telling
from model_release.tasks.dag import release_dag
from model_release.tasks.triggers import LeaseTrigger

PROJECT = Path(__file__).resolve().parents[2]
TROUBLES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ReleaseError) and kind is not ReleaseError
]


def action(error: BaseException) -> RetryAction:
    decided: RetryAction = RETRIES["retry_policy"].evaluate(error, 1, 3).action
    return decided


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_refusal_is_final_and_a_passing_trouble_is_retried(kind: type[ReleaseError]) -> None:
    assert action(kind("…")) is (RetryAction.DEFAULT if kind.transient else RetryAction.FAIL)


def test_some_troubles_pass_and_most_do_not() -> None:
    assert {kind.__name__ for kind in TROUBLES if kind.transient} == {
        "StoreUnavailable", "StoreContested", "ClusterUnavailable", "MetricsUnavailable", "SourceUnavailable",
        "NotReadyYet",
    }  # fmt: skip


@pytest.mark.parametrize("error", [MemoryError(), OSError("lost"), RuntimeError("killed"), KeyError("bug")])
def test_what_is_none_of_ours_keeps_the_ordinary_retries(error: Exception) -> None:
    assert action(error) is RetryAction.DEFAULT


def test_the_policy_is_the_same_after_it_was_stored_with_the_dag() -> None:
    stored = ExceptionRetryPolicy.deserialize(RETRIES["retry_policy"].serialize())
    assert stored.evaluate(ClusterRefused("…"), 1, 3).action is RetryAction.FAIL
    assert stored.evaluate(StoreUnavailable("…"), 1, 3).action is RetryAction.DEFAULT


def test_every_task_of_a_release_has_retries_with_back_off_and_the_policy(spec: ModelSpec) -> None:
    dag: DAG = release_dag(spec, PROJECT)
    for task in dag.tasks:
        assert task.retries == 3, task.task_id
        assert task.retry_delay == timedelta(seconds=10)
        assert task.retry_policy is RETRIES["retry_policy"]


class Log(logging.Logger):
    """A task's log; its lines."""

    def __init__(self) -> None:
        super().__init__("task")
        self.lines: list[str] = []

    def handle(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def tell(context: Any, error: BaseException) -> list[str]:
    """The lines in the log of a task that raised `error`."""
    log = Log()
    with pytest.raises(type(error)), telling(SimpleNamespace(log=log), context):
        raise error
    return log.lines


def test_a_trouble_of_ours_is_one_line_in_the_log_that_says_who_can_mend_it(context: Any, ti: Any) -> None:
    lines = tell(context, ClusterRefused("403: cannot patch\n  inferenceservices"))
    assert lines == ["ClusterRefused: 403: cannot patch inferenceservices -- can be fixed by whoever runs the cluster"]
    assert ti.xcoms == {("this", TROUBLE): "403: cannot patch inferenceservices"}


def test_a_trouble_that_is_not_ours_still_leaves_a_line_for_the_report(context: Any, ti: Any) -> None:
    assert tell(context, KeyError("uid")) == [], "Airflow logs it, with where it happened"
    assert ti.xcoms == {("this", TROUBLE): "KeyError: 'uid'"}


@pytest.mark.parametrize(
    "error",
    [
        AirflowSkipException("not told to move traffic"),
        TaskDeferred(
            trigger=LeaseTrigger(namespace="m", name="n", deadline="2026-03-01T02:00:00+00:00"), method_name="x"
        ),
    ],
)
def test_a_skip_or_a_deferral_is_no_trouble(context: Any, ti: Any, error: BaseException) -> None:
    assert tell(context, error) == []
    assert ti.xcoms == {}


def test_a_task_that_is_killed_leaves_no_trouble_of_its_own(context: Any, ti: Any) -> None:
    assert tell(context, KeyboardInterrupt()) == []
    assert ti.xcoms == {}
