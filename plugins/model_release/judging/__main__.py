"""`python -m model_release.judging`: verdicts, replays and calibrations from JSON (README.md, "Command")."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from .calibrate import calibrate
from .judge import judge
from .past import Past
from .policy import Policy, PolicyError
from .record import EDITION, Record, RecordError
from .window import EvidenceError, Window, windows_from

BAD_INPUT = 2


class _Refused(ValueError):
    """Input that no part of the judge could read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when it answered, 2 for bad input with one line on standard error that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m model_release.judging",
        description="Reads {policy, windows, past, final} as JSON on standard input and prints the verdict as JSON.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--lines", action="store_true", help="one document a line in, one verdict a line out")
    mode.add_argument("--replay", metavar="RECORD", type=Path, help="judge a decision record again, look by look")
    mode.add_argument(
        "--calibrate",
        action="store_true",
        help="read {policy, windows} or a record; say how often stable against itself would be rolled back",
    )
    parser.add_argument("--policy", metavar="FILE", type=Path, help="with --replay or --calibrate: another policy")
    options = parser.parse_args(arguments)
    if options.policy and not (options.replay or options.calibrate):
        parser.error("--policy goes with --replay or --calibrate")
    try:
        other = None if options.policy is None else Policy.from_dict(_parsed(_read(options.policy)))
        if options.replay:
            _replay(Record.from_dict(_parsed(_read(options.replay))), other, sys.stdout)
        elif options.calibrate:
            _print(_calibration(_parsed(sys.stdin.read()), other), sys.stdout, indent=1)
        elif options.lines:
            for n, line in enumerate(sys.stdin, start=1):
                if line.strip():
                    try:
                        _print(_verdict(_parsed(line)), sys.stdout)
                    except (PolicyError, EvidenceError, _Refused) as refusal:
                        raise _Refused(f"line {n}: {refusal}") from None
        else:
            _print(_verdict(_parsed(sys.stdin.read())), sys.stdout, indent=1)
    except (PolicyError, EvidenceError, RecordError, _Refused) as refusal:
        print(" ".join(str(refusal).split()), file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        # Whoever read along has seen enough (`| head`); closing quietly needs a descriptor that still works.
        sys.stderr.close()
        return 0
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as trouble:
        reason = trouble.strerror if isinstance(trouble, OSError) else "not UTF-8 text"
        raise _Refused(f"{path}: {reason}") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as trouble:
        raise _Refused(f"input: not JSON: {trouble}") from None


def _document(data: Any, allowed: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise _Refused(f"input: a mapping with policy and windows is expected, not {type(data).__name__}")
    for key in data:
        if key not in allowed:
            raise _Refused(f"{key}: unknown field; known are {', '.join(allowed)}")
    return data


def _verdict(data: Any) -> dict[str, Any]:
    given = _document(data, ("policy", "windows", "past", "final"))
    final = given.get("final", False)
    if not isinstance(final, bool):
        raise _Refused(f"final: {final!r} is neither true nor false")
    windows = windows_from(given.get("windows", []))
    past = None if given.get("past") is None else Past.from_dict(given["past"])
    return judge(Policy.from_dict(given.get("policy")), windows, past, final=final).to_dict()


def _calibration(data: Any, other: Policy | None) -> dict[str, Any]:
    if isinstance(data, Mapping) and "steps" in data:
        record = Record.from_dict(data)
        if not record.steps:
            raise RecordError("steps: the record has no step, so there are no counts to calibrate on")
        first = record.steps[0].get("policy")
        windows: list[Window] = []
        for i, step in enumerate(record.steps):
            windows += windows_from(step.get("windows"), f"steps[{i}].windows")
    else:
        given = _document(data, ("policy", "windows"))
        first, windows = given.get("policy"), windows_from(given.get("windows", []))
    return calibrate(other or Policy.from_dict(first), windows).to_dict()


def _replay(record: Record, other: Policy | None, out: TextIO) -> None:
    for look in record.replay(other):
        print(look.line, file=out)
    if other is not None:
        print("judged by another policy; the record itself says: " + (record.reason or "nothing yet"), file=out)
        return
    different = record.differences()
    for line in different:
        print(f"DIFFERS  {line}", file=out)
    older = [edition for edition in record.editions if edition != EDITION]
    for edition in older:
        print(f"judged by edition {edition}, replayed by edition {EDITION} of the judge", file=out)
    if not different:
        print(f"the replay gives the recorded {'decisions' if older else 'verdicts'}", file=out)


def _print(data: Mapping[str, Any], out: TextIO, indent: int | None = None) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
