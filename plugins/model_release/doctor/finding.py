"""What a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """OK; warning: a release may work, and somebody should know; error: a release would fail."""

    OK = "OK"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One line. `cure` is what would make it OK, empty when it is; `passing` says that time alone may do."""

    check: str
    level: Level
    sentence: str
    cure: str = ""
    passing: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.value}

    def __str__(self) -> str:
        cure = f" -- {self.cure}" if self.cure else ""
        return f"{self.level.value:<8} {self.check:<12} {self.sentence}{cure}"


def ok(check: str, sentence: str) -> Finding:
    return Finding(check, Level.OK, sentence)


def warning(check: str, sentence: str, cure: str) -> Finding:
    return Finding(check, Level.WARNING, sentence, cure)


def error(check: str, sentence: str, cure: str) -> Finding:
    return Finding(check, Level.ERROR, sentence, cure)
