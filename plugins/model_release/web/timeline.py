"""What happened in a release, in order: for the list, and for the marks on the charts' axis of time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from model_release.web import words
from model_release.web.evidence import is_bake, seconds

if TYPE_CHECKING:
    from model_release.judging.record import Record

Json = dict[str, Any]


def timeline(record: Record) -> list[Json]:
    """Every event with a time, oldest first. `mark` is the short word on a chart; None for what is not marked there."""
    events = [_event(record.started, "start", "Began", f"the release of {record.version or record.model}")]
    events += [_traffic(entry, before) for before, entry in pairwise([{}, *record.traffic])]
    events += [event for step in record.steps if (event := _verdict(step)) is not None]
    events += [_shadow(record.shadow)] if record.shadow else []
    events += [_approval(entry) for entry in record.approvals]
    if record.outcome is not None:
        badge = words.outcome(record.outcome, record.cause)
        events.append(_event(record.ended, "end", badge["word"], record.reason, tone=badge["tone"]))
    known = [event for event in events if event["at"] is not None]
    return sorted(known, key=lambda event: event["at"])


def marks(record: Record) -> list[Json]:
    """The events that a chart shows: when traffic moved, what the judge decided, who answered."""
    return [
        {key: event[key] for key in ("at", "kind", "mark", "tone", "text")}
        for event in timeline(record)
        if event["mark"] is not None
    ]


def _event(time: str | None, kind: str, word: str, text: str, *, tone: str = "mute", mark: str | None = None) -> Json:
    return {"time": time, "at": seconds(time), "kind": kind, "word": word, "text": text, "tone": tone, "mark": mark}


def _traffic(entry: Json, before: Json) -> Json:
    task, percent = str(entry.get("task", "")), entry.get("percent")
    shares = ", ".join(f"{revision} {share} %" for revision, share in (entry.get("revisions") or {}).items())
    if task.startswith("open"):
        word, tone, mark = f"Opened at {percent} %", "busy", f"{percent} %"
    elif task in ("promote", "go_live", "go_direct"):
        word, tone, mark = "All of the traffic", "good", "100 %"
    elif task in ("settle", "sweep") and (percent or not before.get("percent")):
        word, tone, mark = "Settled", "mute", None
    elif percent == 0 and task != "stage":
        word, tone, mark = "Taken back", "bad", "0 %"
    else:
        word, tone, mark = f"Staged at {percent} %", "mute", None
    return _event(entry.get("time"), "traffic", word, f"{shares} ({task})" if shares else task, tone=tone, mark=mark)


def _verdict(step: Json) -> Json | None:
    verdict, windows = step.get("verdict") or {}, step.get("windows") or []
    if verdict.get("decision") in (None, "continue") or not windows:
        return None
    badge = words.decision(verdict["decision"])
    word, mark, tone = f"{badge['word']} at {step['percent']} %", badge["word"], badge["tone"]
    if is_bake(step):
        # Only evidence against it ends a bake early; a bake that just ends has decided nothing, and was not to.
        over = verdict["decision"] == "inconclusive"
        word = "The bake is over" if over else f"{badge['word']} after the promotion"
        mark, tone = ("bake over", "mute") if over else (mark, tone)
    return _event(windows[-1].get("end"), "verdict", word, words.passed(verdict.get("reason")), tone=tone, mark=mark)


def _shadow(found: Json) -> Json:
    badge, text = words.shadow(found.get("decision")), str(found.get("sentence", ""))
    return _event(found.get("time"), "shadow", "Compared before any user", text, tone=badge["tone"])


def _approval(entry: Json) -> Json:
    who, decision = str(entry.get("who", "somebody")), str(entry.get("decision", ""))
    text = f"{who}: {decision}" + (f" ({entry['reason']})" if entry.get("reason") else "")
    return _event(entry.get("time"), "approval", "Answered", text, tone="busy", mark=f"{who}: {decision}")
