"""`make test`: all tests as three pytest runs side by side, followed line by line, with one summary of all.

Whole releases mostly wait, models and simulations mostly count, and the rest does both: side by side they leave two
cores little to wait for. A line is shown as soon as its file is done, with the minutes so far, and each half minute
what a long file is at; what failed is told when all have ended, and the last line counts them together.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

_RELEASES = ["tests/e2e", "tests/faults"]
# From the pages on they count no more than others: they are there so that all parts take about as long.
_COUNTING = ["tests/build", "tests/models", "tests/handlers", "tests/judging"]
_COUNTING += ["tests/web", "tests/browser", "tests/commands", "tests/compose", "tests/sandbox/test_quick_and_wrong.py"]
# Where each part looks.
PARTS = {
    "releases": _RELEASES,
    "counting": _COUNTING,
    "rest": ["tests", *(f"--ignore={place}" for place in _RELEASES + _COUNTING)],
}
MARKS = "not faults and not walk"
_COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed|deselected)")
_LAST = re.compile(r"^=*\s*(?:\d+ \w+(?:, )?)+ in [\d.]+s")


@dataclass
class Part:
    """One run of pytest: its exit code, its last line's counts, and what it says after its tests have run."""

    name: str
    code: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    at: str = ""  # the line of the file that is being tested, as far as it came

    def run(self, command: list[str]) -> None:
        self.follow(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))

    def follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        while piece := process.stdout.read(1):  # a file's dots come one by one
            if piece != "\n":
                self.at += piece
                continue
            line, self.at = self.at, ""
            self.hear(line)
        self.code = process.wait()
        self.say(f"ended: {said(self.counts)}")

    def say(self, line: str) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self.begun), 60)
        print(f"{minutes:02}:{seconds:02} {self.name:8} │ {line}", flush=True)

    def hear(self, line: str) -> None:
        if _LAST.match(line):
            self.counts = Counter({kind: int(number) for number, kind in _COUNTS.findall(line)})
        if self.told or re.match(r"=+ (ERRORS|FAILURES|warnings summary|short test summary)", line):
            self.told.append(line)
        elif line.strip("= ") and not line.startswith("="):
            self.say(line)


def said(counts: Counter[str]) -> str:
    """`N passed, N failed`; an error in what a test needs is a failure, too."""
    more = "".join(f", {counts[kind]} {kind}" for kind in ("skipped", "xfailed", "xpassed") if counts[kind])
    return f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed{more}"


def together(parts: list[Part]) -> tuple[int, str]:
    """The exit code, and the last line."""
    line = said(sum((part.counts for part in parts), Counter()))
    bad = [part for part in parts if part.code]
    # No test failed there, and yet it is not well: a crash, nothing collected, interrupted. 1 is "tests failed".
    ended = [f"the {part.name} ended with code {part.code}" for part in bad if part.code != 1]
    return max((abs(part.code or 0) for part in parts), default=1), "; ".join([line, *ended])


def main() -> int:
    parts = [Part(name) for name in PARTS]
    # One -v takes back the -q of pyproject.toml: a line for each file.
    pytest = [sys.executable, "-m", "pytest", "-v", "--no-header", "--color=no", "-m", MARKS]
    commands = [[*pytest, *where] for where in PARTS.values()]
    threads = [threading.Thread(target=part.run, args=(of,)) for part, of in zip(parts, commands, strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        before = [part.at for part in parts]
        until = time.monotonic() + 30
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for part, at in zip(parts, before, strict=True):
            if part.code is None and part.at and part.at == at:
                part.say(f"{at} …")
    for part in parts:
        if part.code:
            print(f"\n{part.name}:", *part.told, sep="\n")
    code, line = together(parts)
    print(f"\n{line}")
    return code


if __name__ == "__main__":
    sys.exit(main())
