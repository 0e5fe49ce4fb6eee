"""`make test`: all tests as two pytest runs side by side, followed line by line, with one summary of both.

Whole releases mostly wait, and all the rest mostly counts: side by side they take half the time on two cores. A line is
shown as soon as its file is done, and each half minute what a long file is at; what failed is told when both have
ended, and the last line counts both together.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field

# Where each half looks. The tests from the browser's on are no releases: they are there so that both halves take about
# as long.
_FIRST = ["tests/e2e", "tests/faults", "tests/browser", "tests/models", "tests/sandbox/test_quick_and_wrong.py"]
_FIRST += ["tests/build/test_kserve.py", "tests/build/test_kserve_server.py"]
HALVES = {"releases": _FIRST, "rest": ["tests", *(f"--ignore={place}" for place in _FIRST)]}
MARKS = "not faults and not walk"
_COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed|deselected)")
_LAST = re.compile(r"^=*\s*(?:\d+ \w+(?:, )?)+ in [\d.]+s")


@dataclass
class Half:
    """One run of pytest: its exit code, its last line's counts, and what it says after its tests have run."""

    name: str
    code: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
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
        print(f"{self.name:8} │ ended: {said(self.counts)}", flush=True)

    def hear(self, line: str) -> None:
        if _LAST.match(line):
            self.counts = Counter({kind: int(number) for number, kind in _COUNTS.findall(line)})
        if self.told or re.match(r"=+ (ERRORS|FAILURES|warnings summary|short test summary)", line):
            self.told.append(line)
        elif line.strip("= ") and not line.startswith("="):
            print(f"{self.name:8} │ {line}", flush=True)


def said(counts: Counter[str]) -> str:
    """`N passed, N failed`; an error in what a test needs is a failure, too."""
    more = "".join(f", {counts[kind]} {kind}" for kind in ("skipped", "xfailed", "xpassed") if counts[kind])
    return f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed{more}"


def together(halves: list[Half]) -> tuple[int, str]:
    """The exit code, and the last line."""
    line = said(sum((half.counts for half in halves), Counter()))
    bad = [half for half in halves if half.code]
    # No test failed there, and yet it is not well: a crash, nothing collected, interrupted. 1 is "tests failed".
    ended = [f"the {half.name} ended with code {half.code}" for half in bad if half.code != 1]
    return max((abs(half.code or 0) for half in halves), default=1), "; ".join([line, *ended])


def main() -> int:
    halves = [Half(name) for name in HALVES]
    # One -v takes back the -q of pyproject.toml: a line for each file.
    pytest = [sys.executable, "-m", "pytest", "-v", "--no-header", "--color=no", "-m", MARKS]
    commands = [[*pytest, *where] for where in HALVES.values()]
    threads = [threading.Thread(target=half.run, args=(of,)) for half, of in zip(halves, commands, strict=True)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        before = [half.at for half in halves]
        for thread in threads:
            thread.join(30 / len(threads))
        for half, at in zip(halves, before, strict=True):
            if half.code is None and half.at and half.at == at:
                print(f"{half.name:8} │ {at} …", flush=True)
    for half in halves:
        if half.code:
            print(f"\n{half.name}:", *half.told, sep="\n")
    code, line = together(halves)
    print(f"\n{line}")
    return code


if __name__ == "__main__":
    sys.exit(main())
