"""One release: plan, versions compared, every look, the verdict, answers, traffic, and where to look further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from model_release import addresses as to
from model_release.release.index import version_of
from model_release.web import words
from model_release.web.evidence import evidence, is_bake, seconds
from model_release.web.timeline import marks, timeline
from model_release.web.traffic import queries

if TYPE_CHECKING:
    from model_release.judging.record import Record
    from model_release.spec import ModelSpec

Json = dict[str, Any]


def release(record: Record, spec: ModelSpec, known: Json) -> Json:
    """Everything that the page of a release shows; `spec` is its model's file as it is now."""
    try:
        counted: Json = evidence(record)
        trouble = None
    except ValueError as error:
        counted = {"steps": [], "looks": [], "metrics": [], "values": [], "course": None, "reason": "", "still": None}
        counted["decision"] = None
        trouble = f"The counts of this record cannot be judged again: {error}"
    baseline = record.baseline or {}
    begun, ended = seconds(record.started), seconds(record.ended)
    asked = queries(spec, step=5)
    return {
        "release": record.release,
        "model": record.model,
        "service": record.service,
        "version": record.version,
        "baseline": version_of(baseline.get("storage_uri")) or baseline.get("version"),
        "revisions": {"stable": baseline.get("revision"), "canary": (record.canary or {}).get("revision")},
        "started": record.started,
        "ended": record.ended,
        "outcome": words.outcome(record.outcome, record.cause),
        "running": record.outcome is None,
        "reason": record.reason or counted["reason"],
        "percent": int(record.traffic[-1]["percent"]) if record.traffic else 0,
        "note": record.run.get("note"),
        "plan": record.plan,
        "track": _track(record, spec, counted["steps"]),
        "evidence": counted,
        "timeline": timeline(record),
        "marks": marks(record),
        "evaluation": _evaluation(record.evaluation),
        "shadow": _shadow(record.shadow),
        "approvals": record.approvals,
        "traffic": record.traffic,
        "source": record.source,
        "retrospect": record.retrospect,
        "links": {
            "run": to.safe(record.run.get("url")),
            "tasks": _tasks(record),
            "grafana": to.grafana(known.get("grafana"), spec, begun, ended),
            "prometheus": {name: to.graph(known.get("prometheus"), query) for name, query in asked.items()},
        },
        "queries": asked,
        "trouble": trouble,
    }


def _track(record: Record, spec: ModelSpec, steps: list[Json]) -> list[Json]:
    """The way from 0 to 100 %: each step of the plan, and how far the release came on it."""
    passed = {step["percent"]: step for step in steps if not step["bake"]}
    opened = {int(entry["percent"]) for entry in record.traffic}
    ramp = spec.rollout.ramp
    planned = spec.rollout.steps if ramp is None else (ramp.most,)
    percents = sorted({0, 100, *planned, *passed} if record.outcome is None else {0, 100, *passed})
    now = int(record.traffic[-1]["percent"]) if record.traffic else None
    track = []
    for percent in percents:
        state = "done" if percent in opened else "open"
        if percent == now and record.outcome is None:
            state = "now"
        decision = passed[percent]["decision"] if percent in passed else None
        track.append({"percent": percent, "state": state, "decision": decision})
    return track


def _tasks(record: Record) -> list[Json]:
    """The tasks of the run that wrote into the record, each with the address of its log in Airflow."""
    run = to.safe(record.run.get("url"))
    if run is None:
        return []
    # Every share was opened, and looked at, by one task; only the bake has another.
    names = [
        "canary" if str(entry.get("task")).startswith("open_") else str(entry.get("task")) for entry in record.traffic
    ]
    names += ["bake" for step in record.steps if is_bake(step)]
    known = dict.fromkeys(["resolve", *names, "settle", "report"])
    return [{"task": name, "url": f"{run}/tasks/{quote(name)}"} for name in known]


# None: a gate for a comparison that could not be made.
_GATES = {
    True: {"word": "Passed", "tone": "good"},
    False: {"word": "Failed", "tone": "bad"},
    None: {"word": "Not asked", "tone": "mute"},
}


def _evaluation(given: Json | None) -> Json | None:
    """The comparison with everything the template needs spelt out, whatever older records leave away."""
    if not given:
        return None
    candidate, stable = given.get("candidate") or {}, given.get("stable")
    comparison = given.get("comparison") or {}
    return {
        "data": given.get("data") or {},
        "passed": given.get("passed"),
        "candidate": _answers(candidate),
        "stable": _answers(stable) if stable else None,
        "classes": _classes(candidate, stable or {}),
        "gates": [{"sentence": gate["sentence"], "badge": _GATES[gate["passed"]]} for gate in given.get("gates") or []],
        "skipped": comparison.get("skipped"),
        "mcnemar": comparison.get("mcnemar"),
        "flips": comparison.get("negative_flips"),
        "churn": comparison.get("churn"),
        "slices": given.get("slices") or [],
    }


def _shadow(given: Json | None) -> Json | None:
    """The comparison before any traffic; what had no pictures has no counts either."""
    if not given:
        return None
    nothing: Json = {"max_changed": None, "stable": None, "canary": None, "distance": {}, "became": [], "folders": []}
    return {**nothing, **given, "badge": words.shadow(given.get("decision"))}


def _answers(side: Json) -> Json:
    confusion = side.get("confusion") or []
    return {
        "version": side.get("version"),
        "accuracy": side.get("accuracy"),
        "labels": side.get("labels") or [],
        "confusion": [[_cell(count, sum(row)) for count in row] for row in confusion],
        "calibration": side.get("calibration"),
    }


def _cell(count: int, of: int) -> Json:
    """A cell and its place on the scale of 0 to 10: its part of all images with that label."""
    return {"count": count, "heat": round(10 * count / of) if of else 0}


def _classes(candidate: Json, stable: Json) -> list[Json]:
    recall, before = candidate.get("recall") or {}, stable.get("recall") or {}
    support = candidate.get("support") or {}
    return [
        {"label": label, "candidate": value, "stable": before.get(label), "support": support.get(label)}
        for label, value in recall.items()
    ]


def summary(record: Record) -> Json:
    """What the page of a service shows of its newest release."""
    try:
        counted = evidence(record)
    except ValueError as error:
        trouble = f"The counts of {record.release} cannot be judged again: {error}"
        return {"release": record.release, "trouble": trouble, "evidence": None, "marks": marks(record)}
    return {
        "release": record.release,
        "trouble": None,
        "evidence": {key: counted[key] for key in ("steps", "metrics", "values", "reason", "decision", "still")},
        "marks": marks(record),
    }
