"""The model file: what it may say, and how it is told what it may not."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_release.errors import SpecError
from model_release.model_file import load, load_all
from model_release.spec import BUCKET_EDGES_MS, ModelSpec, format_duration, parse_duration

PROJECT = Path(__file__).resolve().parents[1]

GOOD: dict[str, Any] = {
    "model": "digits",
    "source": {"directory": "candidates/digits"},
    "service": {"name": "digits", "namespace": "models"},
    "store": "s3://models/digits/",
    "judge": {"metrics": [{"name": "errors", "max_rate": 0.02}]},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with one field set; None removes it."""
    content = json.loads(json.dumps(GOOD))
    *way, last = path.split(".")
    part = content
    for name in way:
        part = part.setdefault(name, {})
    if value is None:
        del part[last]
    else:
        part[last] = value
    return content


def written(folder: Path, content: dict[str, Any] | str, name: str = "model.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def test_load_minimal_file_has_working_defaults(tmp_path: Path) -> None:
    spec = load(written(tmp_path, GOOD))
    assert spec.service.key == "models/digits"
    assert spec.rollout.steps == (10, 30)
    assert spec.rollout.window == timedelta(seconds=10)
    assert spec.schedule is None


def test_spec_survives_json(tmp_path: Path) -> None:
    spec = load(
        written(tmp_path, changed("rollout", {"steps": [5], "window": "1500ms", "shadow": {"from": "samples"}}))
    )
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_every_model_file_of_the_project_loads_and_the_schema_is_current() -> None:
    assert "digits" in load_all(PROJECT / "include" / "models")
    schema = json.loads((PROJECT / "include" / "models" / "model.schema.json").read_text())
    assert schema == ModelSpec.model_json_schema(), "make schema"


_COUNTED = "sum(increase(orders_total{revision='$revision'}[$window]))"
_RETURNS = {"bad": _COUNTED, "total": _COUNTED}


@pytest.mark.parametrize(
    ("path", "value", "field", "cure"),
    [
        ("rolout", {"steps": [10]}, "rolout", "'rollout' is near"),
        ("service.namespce", "x", "service.namespce", "'namespace' is near"),
        ("service", None, "service", "is missing"),
        ("service.name", "Digits_1", "service.name", "does not have the form"),
        ("service", {"name": "a", "namespace": "b", "min_replicas": 3, "max_replicas": 2}, "service", "less than"),
        ("build.precision", "int4", "build.precision", "'float32', 'bfloat16' or 'int8'"),
        ("build", {"precision": "int8", "fold": True}, "build", "fold is for precision float32, and this is int8"),
        ("service.resources", {"gpu": -1}, "service.resources.gpu", "0"),
        ("service.batching", {"max": 1}, "service.batching.max", "2"),
        ("service.batching", {"max": 8, "within": "1500us"}, "service.batching.within", "is no duration"),
        ("service.batching", {"max": 8, "within": "0.5ms"}, "service.batching.within", "5ms is, for example"),
        ("service.batching", {"max": 8, "within": "60s"}, "service", "would be given up"),
        (
            "service",
            {"name": "a", "namespace": "b", "container_concurrency": 4, "batching": {"max": 8}},
            "service",
            "at most that, or container_concurrency: 0, is right",
        ),
        ("source", {"directory": "x", "s3": "s3://bucket/x/"}, "source", "exactly one"),
        ("source", {"hub": "a/b", "on_promotion": "champion"}, "source", "on_promotion moves an alias of a registry"),
        ("source", {"mlflow": "digits"}, "source.mlflow", "does not have the form"),
        ("source", {"mlflow": "models:/a@b", "on_promotion": "b"}, "source", "the source follows the alias b"),
        ("source", {"mlflow": "models:/a@b", "revision": "main"}, "source", "mlflow names its own"),
        ("source", {}, "source", "exactly one"),
        ("store", "s3://models/digits", "store", "gs://bucket/folder/ or abfss://container@account.dfs"),
        ("store", "az://models/digits/", "store", "abfss://container@account.dfs.core.windows.net/folder/ is"),
        ("store", "gs://models/../x//", "store", "is no prefix of a store"),
        ("source", {"gcs": "s3://bucket/x/"}, "source.gcs", "does not have the form"),
        ("source", {"gcs": "gs://b-1/x/", "s3": "s3://bucket/x/"}, "source", "exactly one"),
        ("evaluation", {"data": "ftp://host/x/"}, "evaluation.data", "is no prefix of a store"),
        ("rollout.window", 10, "rollout.window", "such as 10s"),
        ("rollout.window", "10 seconds", "rollout.window", "is no duration"),
        ("rollout.window", "0s", "rollout.window", "longer than 0s"),
        ("answer_within", "99999999999d", "answer_within", "is longer than 999999999d"),
        ("rollout.steps", [30, 10], "rollout.steps", "[10, 30] would"),
        ("rollout.steps", [10, 10], "rollout.steps", "[10] would"),
        ("rollout.steps", [10, 100], "rollout.steps", "1 to 99"),
        ("rollout.steps", [0, 10], "rollout.steps", "1 to 99"),
        ("rollout.steps", [], "rollout.steps", "at least 1"),
        ("rollout", {"steps": [10], "ramp": {"most": 20}}, "rollout.steps", "one of both is right"),
        ("rollout", {"promote_with_confidence": 0.9, "bake": "0s"}, "rollout", "bake: 10m is right"),
        ("rollout.promote_with_confidence", 1.2, "rollout.promote_with_confidence", "less than 1"),
        ("rollout.ramp", {"most": 0}, "rollout.ramp.most", "below the first level, which is 1 percent"),
        ("rollout.ramp", {"most": 100}, "rollout.ramp.most", "1 to 99 is right"),
        ("rollout.ramp", {"budget": 0}, "rollout.ramp.budget", "greater than 0"),
        ("rollout.ramp", {"budgets": 5}, "rollout.ramp.budgets", "'budget' is near"),
        (
            "rollout.shadow",
            {"from": "s3://models/samples"},
            "rollout.shadow.from",
            "is no prefix of a store; s3://bucket/folder/",
        ),
        ("rollout.shadow", {"requests": 10}, "rollout.shadow.from", "is missing"),
        ("rollout.shadow", {"from": "a", "max_changd": 0.1}, "rollout.shadow.max_changd", "'max_changed' is near"),
        ("rollout.shadow", {"from": "a", "max_changed": 0.005}, "rollout.shadow", "requests: 598 is the least"),
        ("rollout.shadow", {"from": "a", "requests": 20000}, "rollout.shadow.requests", "less than or equal to 10000"),
        ("rollout", {"window": "10m", "deadline": "15m"}, "rollout", "20m is the least"),
        ("schedule", "every week", "schedule", "@weekly"),
        ("runtime", "triton", "runtime", "'torchserve' or 'kserve'"),
        ("judge.metrics", [], "judge.metrics", "at least 1"),
        ("judge.metrics", [{"name": "errors"}], "judge.metrics.0", "max_rate"),
        ("judge.metrics", [{"name": "errors", "max_rate": 2}], "judge.metrics.0.max_rate", "less than 1"),
        ("judge.metrics", [{"name": "errors", "max_ratio": 1.5}], "judge.metrics.0", "needs a floor"),
        (
            "judge.metrics",
            [{"name": "e", "max_ratio": float("inf"), "floor": 0.1}],
            "judge.metrics.0.max_ratio",
            "finite",
        ),
        ("judge.metrics", [{"name": "errors", "floor": 0.1, "max_rate": 0.1}], "judge.metrics.0", "max_ratio"),
        ("judge.metrics", [{"name": "e", "max_rate": 0.1}] * 2, "judge", "two metrics are called 'e'"),
        ("judge.metrics", [{"name": "e", "observe": True}], "judge", "at least one must decide"),
        *(
            ("judge.metrics", [{"name": "e", "max_rate": 0.1}, {"name": "p", "max_shift": shift}], field, cure)
            for field, shift, cure in (
                ("judge.metrics.1.max_shift", 0, "greater than 0"),
                ("judge.metrics.1.max_shift", 1, "less than 1"),
                ("judge.metrics.1.max_shift", "ten", "valid number"),
            )
        ),
        ("judge.metrics", [{"name": "u", "below": 0.52, "max_rate": 0.1}], "judge.metrics.0", "0.5 or 0.55"),
        (
            "judge.metrics",
            [{"name": "u", "below": 0.5, "above": "1s", "max_rate": 0.1}],
            "judge.metrics.0",
            "two metrics",
        ),
        ("judge.metrics", [{"name": "u", "of": "entropy", "max_rate": 0.1}], "judge.metrics.0", "below: 0.5 beside it"),
        *(
            ("judge.metrics", [{"name": "r", "max_rate": 0.1, **queries}], field, cure)
            for queries, field, cure in (
                ({"bad": _COUNTED}, "judge.metrics.0", "bad needs total"),
                ({"total": _COUNTED}, "judge.metrics.0", "total needs bad"),
                ({"bad": "up", "total": _COUNTED}, "judge.metrics.0.bad", "$window is missing"),
                ({"bad": "a[$window]", "total": _COUNTED}, "judge.metrics.0.bad", "$revision is missing"),
                ({"bad": _COUNTED, "total": f"$pod {_COUNTED}"}, "judge.metrics.0.total", "'$pod' stands for nothing"),
                (
                    {"bad": _COUNTED.replace("increase", "rate"), "total": _COUNTED},
                    "judge.metrics.0.bad",
                    "rate(…) gives no count",
                ),
            )
        ),
        *(
            ("judge.metrics", [{"name": "r", "max_rate": 0.1, "delay": "6h", **more}], field, cure)
            for more, field, cure in (
                ({}, "judge.metrics.0", "bad of total; the others are counted at once"),
                (_RETURNS | {"max_rate": None, "max_ratio": 2, "floor": 0.1}, "judge.metrics.0", "a max_rate is right"),
                (_RETURNS | {"max_ratio": 2, "floor": 0.1}, "judge.metrics.0", "no max_ratio"),
                (_RETURNS | {"delay": "0s"}, "judge.metrics.0.delay", "longer than 0s"),
                (_RETURNS, "judge", "every metric that decides has a delay, so none does before the promotion"),
            )
        ),
        (
            "judge.metrics",
            [{"name": "p", "max_shift": 0.1, "max_rate": 0.1}],
            "judge.metrics.0",
            "max_shift limits the labels and max_rate bad requests; give each a name of its own",
        ),
        ("judge.metrics", [{"name": "p", "max_shift": 0.1, "above": "1s"}], "judge.metrics.0", "above bad requests"),
        ("judge.metrics", [{"name": "p", "max_shift": 0.1}], "judge", "judge a share of bad requests, too"),
        (
            "judge.metrics",
            [{"name": "e", "max_rate": 0.1}, *({"name": name, "max_shift": 0.1} for name in "pq")],
            "judge",
            "p and q limit the same labels",
        ),
        *(
            ("judge.metrics", [{"name": "e", "max_rate": 0.1, "slices": {"by": "country"}, **more}], field, cure)
            for more, field, cure in (
                ({"slices": {}}, "judge.metrics.0.slices.by", "is missing"),
                ({"slices": {"by": "Country-1"}}, "judge.metrics.0.slices.by", "does not have the form"),
                ({"slices": {"by": "c", "at_least": 0}}, "judge.metrics.0.slices.at_least", "greater than or equal"),
                ({"max_rate": None, "max_shift": 0.1}, "judge.metrics.0", "a share with slices is right"),
                ({"max_rate": None, "observe": True}, "judge.metrics.0", "mean nothing without a limit"),
                ({"bad": _COUNTED, "total": _COUNTED}, "judge.metrics.0", "sum by (country) (increase(…[$window]))"),
                ({"below": 0.5}, "judge.metrics.e.slices", "service: {slices: [country]} is right"),
                ({"below": 0.5, "of": "entropy"}, "judge.metrics.0", "counts them by probability"),
            )
        ),
        ("judge.values", [{"name": "v", "query": "up"}], "judge.values.0", "no limit"),
        ("judge.values", [{"name": "v", "query": "up{a='$pod'}", "max": 1}], "judge.values.0.query", "'$pod'"),
        (
            "judge.values",
            [{"name": "v", "query": "up", "max": 1, "min": 2}],
            "judge.values.0",
            "every value would fail",
        ),
        ("judge.values", [{"name": "errors", "query": "up", "max": 1}], "judge", "two metrics are called 'errors'"),
        ("judge.metrics", [{"name": "s", "above": "600ms", "max_rate": 0.1}], "judge", "500ms or 750ms"),
    ],
)
def test_load_refuses_with_file_line_field_and_cure(
    tmp_path: Path, path: str, value: object, field: str, cure: str
) -> None:
    file = written(tmp_path, changed(path, value))
    with pytest.raises(SpecError) as refusal:
        load(file)
    lines = str(refusal.value).split("; " + str(file))
    assert len(lines) == 1, "one trouble, one line"
    assert f": {field}: " in lines[0]
    assert cure in lines[0]
    number = int(lines[0].removeprefix(f"{file}:").split(":")[0])
    parts = [part for part in field.split(".") if not part.isdigit()]
    text = file.read_text().splitlines()[number - 1]
    assert any(part in text for part in parts) or number == 1 or text.lstrip().startswith("-")


def test_a_runtime_has_a_serving_runtime_of_its_name(tmp_path: Path) -> None:
    spec = load(written(tmp_path, changed("runtime", "kserve")))
    assert spec.serving_runtime == "model-release-kserve"
    assert load(written(tmp_path, GOOD)).serving_runtime == "model-release-torchserve"
    assert (
        load(written(tmp_path, changed("service.runtime", "kserve-torchserve"))).serving_runtime == "kserve-torchserve"
    )
    with pytest.raises(
        SpecError, match=r"build\.fold is TorchScript's, and runtime kserve serves what torch\.export makes"
    ):
        load(written(tmp_path, {**changed("runtime", "kserve"), "build": {"fold": True}}))


def test_load_names_every_trouble_at_its_own_line(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "model: digits\nsource: {directory: x}\nservice:\n  name: d\n  namespace: m\n  replicas: 2\n"
        "store: s3://models/digits/\nrollout:\n  window: 10\njudge:\n  metrics:\n    - {name: e, max_rate: 0.1}\n",
    )
    with pytest.raises(SpecError) as refusal:
        load(file)
    assert f"{file}:6: service.replicas" in str(refusal.value)
    assert f"{file}:9: rollout.window" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("model: a\nmodel: b\n", ":2: not YAML: 'model' stands here twice"),
        ("- a\n", "is a mapping"),
        ("a: [", "not YAML"),
        ("model: a\n# a bell: \a\n", ":2: not YAML: unacceptable character #x0007"),
        ("model: {{ name }}\n", ":1: not YAML: a key is a word, not a list or a mapping"),
        ("model: a\nschedule: 2026-02-30\n", ":2: not YAML: day is out of range for month"),
        ("model: a\nkeep: {days: 0x_}\n", ":2: not YAML: invalid literal for int() with base 16"),
    ],
)
def test_load_refuses_what_is_no_model_file(tmp_path: Path, text: str, cure: str) -> None:
    with pytest.raises(SpecError) as refusal:
        load(written(tmp_path, text))
    assert cure in str(refusal.value)


def test_load_all_refuses_two_files_with_one_model(tmp_path: Path) -> None:
    first, second = written(tmp_path, GOOD, "a.yaml"), written(tmp_path, GOOD, "b.yaml")
    with pytest.raises(SpecError) as refusal:
        load_all(tmp_path)
    assert str(first) in str(refusal.value)
    assert str(second) in str(refusal.value)


def test_hidden_files_are_no_model_files(tmp_path: Path) -> None:
    """An editor's lock is a link to nowhere, and a Mac leaves `._x` beside each x it copies."""
    written(tmp_path, GOOD)
    (tmp_path / ".#model.yaml").symlink_to("me@laptop.4711")
    (tmp_path / "._model.yaml").write_bytes(b"\x00\x05\x16\x07")
    assert list(load_all(tmp_path)) == ["digits"]


@pytest.mark.parametrize("text", ["500ms", "10s", "90s", "30m", "2h", "1d", "0s", "1500ms"])
def test_durations_read_back(text: str) -> None:
    assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("profile", sorted(BUCKET_EDGES_MS))
def test_policy_takes_every_edge_of_its_profile(tmp_path: Path, profile: str) -> None:
    for edge in BUCKET_EDGES_MS[profile]:
        metric = {"name": "slow", "above": format_duration(timedelta(milliseconds=edge)), "max_rate": 0.1}
        load(written(tmp_path, changed("judge", {"profile": profile, "metrics": [metric]})))


def test_durations_beside_stable_are_compared_at_the_edges_around_their_limit(tmp_path: Path) -> None:
    slow = {"name": "slow", "above": "500ms", "max_rate": 0.05}
    beside = slow | {"name": "slower", "max_ratio": 1.5, "floor": 0.01}
    spec = load(written(tmp_path, changed("judge", {"profile": "istio", "metrics": [slow, beside]})))
    alone, both = spec.policy(10)["metrics"]
    assert "edges" not in alone
    assert both["edges"] == [50, 100, 250, 1000, 2500, 5000]
    assert all("edges" not in metric for metric in spec.policy(None)["metrics"]), (
        "in the bake there is no stable beside"
    )


@pytest.mark.parametrize("watched", [{"bake": "10m"}, {"promote_with_confidence": 0.9}])
def test_what_is_watched_on_needs_a_limit_that_can_be_judged_without_stable(
    tmp_path: Path, watched: dict[str, object]
) -> None:
    beside = {"name": "errors", "max_ratio": 1.5, "floor": 0.01}
    content = changed("judge", {"metrics": [beside]})
    assert not load(written(tmp_path, content)).bakes
    with pytest.raises(
        SpecError, match=f"rollout.{next(iter(watched))} .* a max_rate for one of judge.metrics is right"
    ):
        load(written(tmp_path, content | {"rollout": watched}))


def test_what_is_known_late_is_judged_in_a_bake_that_waits_for_it(tmp_path: Path) -> None:
    late = {"name": "wrong", "max_rate": 0.1, "delay": "6h", **_RETURNS}
    content = changed("judge", {"metrics": [{"name": "errors", "max_rate": 0.02}, late]})
    unsaid = load(written(tmp_path, content))
    assert unsaid.baked == timedelta(hours=6, minutes=10), "as long as anything else, once it is known"
    names = [[metric["name"] for metric in unsaid.policy(percent)["metrics"]] for percent in (10, None)]
    assert names == [["errors"], ["errors", "wrong"]]
    assert unsaid.policy(None)["deadline_windows"] == 370 * 6
    given = load(written(tmp_path, content | {"rollout": {"bake": "7h"}}))
    assert given.baked == timedelta(hours=7)
    with pytest.raises(SpecError, match=r"rollout\.bake 6h is over before what has a delay of 6h is known; longer"):
        load(written(tmp_path, content | {"rollout": {"bake": "6h"}}))
    beside = {"name": "errors", "max_ratio": 2, "floor": 0.01}
    assert load(written(tmp_path, changed("judge", {"metrics": [beside, late]}))).bakes
    with pytest.raises(SpecError, match="is seen in the bake after the promotion, and there is none where no metric"):
        load(written(tmp_path, changed("judge", {"metrics": [beside, late | {"observe": True}]})))


def test_a_ramp_stands_in_place_of_the_steps(tmp_path: Path) -> None:
    from model_release.judging import Policy

    spec = load(written(tmp_path, changed("rollout", {"ramp": {"budget": 12, "most": 20}})))
    assert (spec.rollout.steps, spec.rollout.path) == ((), "up to 20 % as the evidence allows → 100 %")
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec, "as a release keeps it"
    policy = Policy.from_dict(spec.policy(5))
    assert policy.ramp is not None
    assert (policy.ramp.budget, policy.ramp.most, policy.shares) == (12, 0.2, ())


def test_the_allowance_is_shared_by_the_canary_and_its_bake_whatever_the_steps(tmp_path: Path) -> None:
    from model_release.judging import Policy

    metrics = [
        {"name": "errors", "max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005, "slices": {"by": "country"}},
        {"name": "versus_stable", "codes": "4xx", "max_ratio": 2, "floor": 0.01},
    ]
    content = changed("judge", {"metrics": metrics}) | {"rollout": {"steps": [10, 30], "bake": "5m"}}
    spec = load(written(tmp_path, content))
    at_step, baking = Policy.from_dict(spec.policy(10)), Policy.from_dict(spec.policy(None))
    assert at_step.steps == baking.steps == 2
    assert (at_step.shares, baking.shares) == ((0.1, 0.3), ())
    assert at_step.traffic == 0.1
    assert baking.traffic is None
    assert [metric.name for metric in baking.metrics] == ["errors"], "nothing stands beside a promoted revision"
    assert baking.metrics[0].max_ratio is None
    assert at_step.metrics[0].slices == baking.metrics[0].slices
    assert (baking.metrics[0].slices.by, baking.metrics[0].slices.at_least) == ("country", 200)
