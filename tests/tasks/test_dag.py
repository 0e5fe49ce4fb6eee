"""The wiring of a release DAG, and what it costs to parse."""

from __future__ import annotations

import json
import runpy
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from model_release.errors import SpecError
from model_release.model_file import load
from model_release.spec import Metric, ModelSpec
from model_release.tasks import suggestions
from model_release.tasks.dag import release_dag
from model_release.tasks.suggestions import Suggested

from .parsing import HEAVY, Parsing

PROJECT = Path(__file__).resolve().parents[2]


def spec(**rollout: object) -> ModelSpec:
    given = load(PROJECT / "include" / "models" / "digits.yaml").model_dump(mode="json", exclude_none=True)
    given["rollout"] = rollout
    return ModelSpec.model_validate(given)


def wiring(model: ModelSpec) -> dict[str, set[str]]:
    return {task.task_id: set(task.downstream_task_ids) for task in release_dag(model, PROJECT).tasks}


def test_release_dag_is_wired_as_designed() -> None:
    assert wiring(spec(steps=[10, 30], bake="5m")) == {
        "preflight": {"resolve"},
        "resolve": {"export", "evaluate"},
        "export": {"archive"},
        "archive": {"evaluate"},
        "evaluate": {"publish"},
        "publish": {"claim", "look_back"},
        "look_back": {"report"},
        "claim": {"stage", "settle"},
        "stage": {"smoke"},
        "smoke": {"canary", "go_live", "go_direct"},
        "go_live": {"settle"},
        "go_direct": {"bake"},
        "canary": {"decide"},
        "decide": {"promote", "roll_back"},
        "promote": {"bake"},
        "bake": {"decide_bake", "settle"},
        "decide_bake": {"roll_back"},
        "roll_back": {"settle"},
        "settle": {"report"},
        "report": set(),
    }


def test_release_dag_of_the_missions_own_flow_has_one_step_of_30() -> None:
    tasks = wiring(spec(steps=[30], bake="0s"))
    assert tasks["decide"] == {"promote", "roll_back"}
    assert tasks["promote"] == {"settle"}
    assert "bake" not in tasks


def test_what_is_promoted_is_watched_on_unless_the_file_says_otherwise_or_nothing_could_be_judged() -> None:
    said = spec(steps=[30])
    assert wiring(said)["promote"] == {"bake"}
    assert "then watched for as long as the plan chooses" in (release_dag(said, PROJECT).doc_md or "")
    counts = "sum(increase(labels_total{revision='$revision'}[$window]))"
    late = Metric(name="wrong", bad=counts, total=counts, delay=timedelta(hours=6), max_rate=0.1)
    judged = said.judge.model_copy(update={"metrics": (*said.judge.metrics, late)})
    told = release_dag(said.model_copy(update={"judge": judged}), PROJECT).doc_md or ""
    assert "as the plan chooses (by wrong, too, known up to 6h after an answer)" in told
    assert "evidence on errors, slow, from" in told, "what is known late gives a canary nothing"
    beside = Metric(name="errors", max_ratio=1.5, floor=0.005)
    alone = said.model_copy(update={"judge": said.judge.model_copy(update={"metrics": (beside,)})})
    assert wiring(alone)["promote"] == {"settle"}


def test_without_an_evaluation_in_the_model_file_there_is_none() -> None:
    tasks = wiring(spec(steps=[30]).model_copy(update={"evaluation": None}))
    assert "evaluate" not in tasks
    assert tasks["resolve"] == {"export", "publish"}
    assert tasks["archive"] == {"publish"}


def test_settle_is_the_teardown_of_the_claim_and_fails_the_run() -> None:
    dag = release_dag(spec(steps=[30]), PROJECT)
    settle, claim = dag.get_task("settle"), dag.get_task("claim")
    assert claim.is_setup
    assert settle.is_teardown
    assert settle.on_failure_fail_dagrun
    report = dag.get_task("report")
    assert report.is_teardown, "else a run that was marked by hand would skip it, and end as a success"
    assert report.on_failure_fail_dagrun
    assert dag.dagrun_timeout is None, "it would end a run without its teardown"


def test_no_branch_leads_straight_to_the_teardown() -> None:
    """A branch skips what it does not choose, teardowns included."""
    tasks = wiring(spec(steps=[10, 30], bake="5m"))
    branches = [name for name in tasks if name.startswith("decide") or name in ("smoke", "resolve")]
    assert len(branches) == 4
    assert all("settle" not in tasks[name] for name in branches)


@pytest.mark.parametrize("approval", ["never", "before_promote", "on_inconclusive"])
@pytest.mark.parametrize("steps", [[30], [1, 2, 5, 10]])
def test_no_edit_of_the_shares_or_of_the_approval_makes_a_task_vanish(approval: str, steps: list[int]) -> None:
    """A2: the release that is under way goes on in the tasks that it began with."""
    model = spec(steps=steps, bake="5m").model_copy(update={"approval": approval})
    assert wiring(model) == wiring(spec(steps=[10, 30], bake="5m"))


def test_the_form_suggests_the_versions_that_are_known() -> None:
    dag = release_dag(spec(steps=[30]), PROJECT, ["0123456789abcdef"])
    assert dag.params.get_param("version").schema["examples"] == ["0123456789abcdef"]
    dag.params["version"] = "fedcba9876543210"
    assert dag.params.validate()["version"] == "fedcba9876543210", "suggestions, not all there is"


def test_the_form_tells_what_the_last_plan_said() -> None:
    lines = ("stable: 0.3 % errors.", "A good canary needs 7 min.")
    told = release_dag(spec(steps=[30]), PROJECT, plan=lines).params.get_param("rollout").description or ""
    assert told.endswith("The last preflight said of a canary: stable: 0.3 % errors. A good canary needs 7 min.")
    silent = release_dag(spec(steps=[30]), PROJECT).params.get_param("rollout").description
    assert silent == "What becomes of the version once it is published."


def test_what_is_suggested_is_written_once_and_an_older_list_of_versions_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow import sdk

    kept, writes = {suggestions.VARIABLE: json.dumps({"faces": ["a"], "digits": ["b"]})}, list[str]()

    class Variable:
        @staticmethod
        def get(name: str, default: str) -> str:
            return kept.get(name, default)

        @staticmethod
        def set(name: str, value: str, description: str) -> None:
            kept[name] = value
            writes.append(value)

    monkeypatch.setattr(sdk, "Variable", Variable)
    assert suggestions.known() == {"faces": Suggested(("a",)), "digits": Suggested(("b",))}
    for _ in range(2):
        suggestions.remember("digits", plan=["needs 7 min"])
        suggestions.remember("digits", ["c", "b"])
    assert suggestions.known() == {"faces": Suggested(("a",)), "digits": Suggested(("c", "b"), ("needs 7 min",))}
    assert len(writes) == 2
    kept[suggestions.VARIABLE] = "no JSON"
    assert suggestions.known() == {}


def test_a_change_of_the_model_file_is_a_change_of_the_dag() -> None:
    assert release_dag(spec(steps=[30]), PROJECT).doc_md != release_dag(spec(steps=[40]), PROJECT).doc_md


def test_who_opens_the_dag_reads_what_it_does_and_each_task_says_what_it_is_for() -> None:
    dag = release_dag(spec(steps=[10, 30]), PROJECT)
    assert "10 % → 30 % → 100 % of the traffic" in dag.doc_md
    assert "evidence on errors" in dag.doc_md
    assert [task.task_id for task in dag.tasks if not task.doc_md] == []
    assert not any(line.startswith("    ") for task in dag.tasks for line in task.doc_md.split("Args:")[0].splitlines())


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("version", None, True),
        ("version", "0123456789abcdef", True),
        ("version", "latest", False),
        ("version", '"; rm -rf /', False),
        ("version", "{{ conf }}", False),
        ("rollout", "auto", True),
        ("rollout", "canary", True),
        ("rollout", "none", True),
        ("rollout", "direct", True),
        ("rollout", "at once", False),
        ("revision", "20261122T230000", True),
        ("revision", "9f1e7c0", True),
        ("revision", "$(id)", False),
        ("note", 'quotes " and { braces }\nand lines', True),
        ("note", "x" * 1001, False),
    ],
)
def test_the_form_takes_what_can_be_meant_and_nothing_else(name: str, value: object, accepted: bool) -> None:
    params = release_dag(spec(steps=[30]), PROJECT).params
    params.validate()
    if accepted:
        params[name] = value
        assert params.validate()[name] == value
    else:
        with pytest.raises(Exception, match="Invalid input"):
            params[name] = value


def test_no_task_renders_templates_of_what_users_type() -> None:
    dag = release_dag(spec(steps=[10, 30], bake="5m"), PROJECT)
    assert all(not task.template_fields for task in dag.tasks)


def test_dag_files_parse_without_anything_heavy(parsing: Parsing) -> None:
    code = (
        "import runpy, sys, json\n"
        f"runpy.run_path({str(PROJECT / 'dags' / 'release.py')!r})\n"
        f"print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))"
    )
    assert parsing(code) == []


def test_a_dag_file_does_little_for_each_model(parsing: Parsing, tmp_path: Path) -> None:
    """Counted in calls of Python functions, which are the same on any machine. What it takes is in docs/scale.md."""

    def calls(models: int) -> int:
        folder = tmp_path / str(models)
        (folder / "include" / "models").mkdir(parents=True)
        (folder / "dags").mkdir()
        (folder / "dags" / "release.py").write_text((PROJECT / "dags" / "release.py").read_text())
        text = yaml.safe_load((PROJECT / "include" / "models" / "digits.yaml").read_text())
        for number in range(models):
            content = yaml.safe_dump({**text, "model": f"model-{number}"})
            (folder / "include" / "models" / f"{number}.yaml").write_text(content)
        code = (
            "import collections, runpy, sys\n"
            "seen = collections.Counter()\n"
            "sys.setprofile(lambda frame, event, given: seen.update([event]))\n"
            f"found = runpy.run_path({str(folder / 'dags' / 'release.py')!r})\n"
            "sys.setprofile(None)\n"
            f"assert sum(name.startswith('release_model-') for name in found) == {models}\n"
            "print(seen['call'])"
        )
        return int(parsing(code))

    ten, twenty = calls(10), calls(20)
    each = (twenty - ten) / 10
    assert each <= 30_000, "26 456 when this was written"
    assert ten - 10 * each <= 80_000, "62 957 when this was written, whatever the number of models"


def test_a_broken_model_file_takes_no_other_models_dags_with_it(parsing: Parsing, tmp_path: Path) -> None:
    """A release of theirs may be under way: its tasks are there, and those that roll back."""
    (tmp_path / "include").mkdir()
    shutil.copytree(PROJECT / "dags", tmp_path / "dags")
    models = shutil.copytree(PROJECT / "include" / "models", tmp_path / "include" / "models")
    (models / "broken.yaml").write_text("model: broken\nrollout: {steps: [30, 10]}\n")
    code = (
        "import runpy, json\n"
        f"names = [{str(tmp_path / 'dags')!r} + '/' + name + '.py' for name in ('release', 'emergency', 'retrain')]\n"
        "made = [one.dag_id for name in names for one in runpy.run_path(name).values() if hasattr(one, 'dag_id')]\n"
        "print(json.dumps(made))"
    )
    made = set(parsing(code))
    assert {"release_digits", "retrain_digits", "rollback_digits", "promote_digits"} <= made
    assert not {name for name in made if "broken" in name}
    with pytest.raises(SpecError, match=r"broken\.yaml:2: rollout\.steps"):
        runpy.run_path(str(tmp_path / "dags" / "model_files.py"))
    (models / "broken.yaml").unlink()
    runpy.run_path(str(tmp_path / "dags" / "model_files.py"))


def test_a_task_makes_only_the_dag_that_it_belongs_to(parsing: Parsing) -> None:
    """Each task parses its DAG file once more."""
    code = (
        "import json, runpy\n"
        f"made = runpy.run_path({str(PROJECT / 'dags' / 'release.py')!r})\n"
        "print(json.dumps([name for name in made if name.startswith('release_') and name != 'release_dag']))"
    )
    assert parsing(code, _AIRFLOW_PARSING_CONTEXT_DAG_ID="release_digits") == ["release_digits"]
    assert len(parsing(code)) > 1
