"""The words and tones of the pages: what a state is called, and how it looks.

A tone is one of good, bad, warn, busy and mute. It never stands alone: the word beside it says the same to whoever
does not see colours. What is not known is mute, and never good.
"""

from __future__ import annotations

from typing import Any

Badge = dict[str, str]

OUTCOMES: dict[str | None, tuple[str, str]] = {
    "promoted": ("Promoted", "good"),
    "first": ("First version live", "good"),
    "rolled_back": ("Rolled back", "bad"),
    "inconclusive": ("Inconclusive", "warn"),
    "failed": ("Failed", "bad"),
    "nothing_new": ("Nothing new", "mute"),
    "published": ("Published only", "mute"),
    None: ("Running", "busy"),
}
DECISIONS = {
    "promote": ("Passed", "good"),
    "rollback": ("Roll back", "bad"),
    "continue": ("Watching", "busy"),
    "open": ("Opening wider", "busy"),
    "inconclusive": ("Inconclusive", "warn"),
}
STATES = {
    "live": ("Live", "good"),
    "canary": ("Canary", "busy"),
    "staged": ("Staged at 0 %", "busy"),
    "taken_back": ("Taken back", "bad"),
    "releasing": ("Releasing", "busy"),
    "waking": ("Not ready", "warn"),
    "absent": ("Not deployed", "mute"),
    "unknown": ("Unknown", "mute"),
}
METRIC_STATES = {
    "pass": ("Within its limit", "good"),
    "fail": ("Beyond its limit", "bad"),
    "undecided": ("Undecided", "busy"),
    "no_data": ("No data", "warn"),
    "successful": ("Within its limit", "good"),
    "failed": ("Beyond its limit", "bad"),
    "inconclusive": ("Inconclusive", "warn"),
    "error": ("Not measured", "warn"),
    "pending": ("Undecided", "busy"),
}
# Of a shadow: what stable and a canary at 0 % answered to the same pictures.
SHADOWS = {
    "within": ("Within its limit", "good"),
    "beyond": ("Beyond its limit", "bad"),
    "few": ("Too little to tell", "warn"),
    "missing": ("No pictures", "warn"),
    "observed": ("Only shown", "mute"),
}
SLICES = {"fail": "beyond the limit", "few": "too few to judge", "judged": ""}


def outcome(name: str | None, cause: str | None = None) -> Badge:
    """How a release ended, or that it runs; and what turned it back (`release.outcome`)."""
    badge = _badge(OUTCOMES, name)
    return badge | {"word": f"{badge['word']}: {cause}"} if cause else badge


def decision(name: Any) -> Badge:
    """What the judge says."""
    return _badge(DECISIONS, name)


def state(name: str) -> Badge:
    """What a service does now."""
    return _badge(STATES, name)


def metric(name: Any) -> Badge:
    """How one metric stands."""
    return _badge(METRIC_STATES, name)


def shadow(name: Any) -> Badge:
    """What a shadow has shown."""
    return _badge(SHADOWS, name)


def passed(reason: Any) -> str:
    """A step's sentence. The judge says "Promoted" of each step that it lets pass; the release is once all have."""
    text = str(reason or "")
    return f"Passed: {rest}" if (rest := text.removeprefix("Promoted: ")) != text else text


def _badge(known: Any, name: Any) -> Badge:
    try:
        word, tone = known[name]
    except (KeyError, TypeError):
        # A word of a newer version, or of a record written by hand: shown as it is.
        word, tone = str(name), "mute"
    return {"name": str(name), "word": word, "tone": tone}
