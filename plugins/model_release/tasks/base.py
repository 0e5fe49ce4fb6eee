"""What every task of a release has in common: its model, its troubles in one line, its retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import getdoc
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule

from model_release import errors
from model_release.errors import ReleaseError
from model_release.spec import ModelSpec
from model_release.tasks import links
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.tasks.lineage import Lineage

TROUBLE = "trouble"  # the XCom key under which a failed task leaves its one line

_FAULTS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ReleaseError) and kind is not ReleaseError
]

# A refusal tried again is refused again, only later. What Airflow or the machine does to a task (killed, lost,
# out of memory) is none of these and keeps the ordinary retries.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=5),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[f"{kind.__module__}.{kind.__qualname__}" for kind in _FAULTS if not kind.transient],
                action=RetryAction.FAIL,
                reason="trying again would be refused again",
            )
        ]
    ),
}


class ReleaseOperator(BaseOperator):
    """A task of the release of one model. Subclasses say what it does in `release`."""

    ui_color = "#e8f0fe"
    operator_extra_links = links.LINKS

    def __init__(self, *, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.lineage: Lineage | None = None

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Airflow's provider of OpenLineage, where it is installed, asks this when the task has ended, either way."""
        from model_release.tasks.lineage import as_openlineage

        return as_openlineage(self.lineage)

    def execute(self, context: Any) -> Any:
        with telling(self, context):
            return self.release(context, Run.of(context, self.spec))

    def release(self, context: Any, run: Run) -> Any:
        """The task's work; may be run again at any moment and does what is left to do."""
        raise NotImplementedError


def documented(dag: DAG) -> DAG:
    """The DAG, with what each task does beside it in Airflow's UI."""
    for task in dag.tasks:
        task.doc_md = task.doc_md or getdoc(type(task))
    return dag


@contextmanager
def telling(task: BaseOperator, context: Any) -> Iterator[None]:
    """Makes the task's links work; puts a trouble into one line, in the log and for the report that ends the run."""
    if isinstance(task, ReleaseOperator):
        links.push(context["ti"], task.spec, Run.of(context, task.spec))
    try:
        yield
    except ReleaseError as error:
        line = f"{type(error).__name__}: {error}"
        task.log.error("%s -- can be fixed by %s", line, error.fixed_by)
        context["ti"].xcom_push(key=TROUBLE, value=str(error))
        raise
    except Exception as error:
        # Not one of ours: Airflow logs it whole; the report still gets a line. TaskDeferred and Airflow's own skips
        # are no troubles, and none of them is a fault of the task.
        if type(error).__module__.split(".")[0] != "airflow":
            context["ti"].xcom_push(key=TROUBLE, value=f"{type(error).__name__}: {error}")
        raise
