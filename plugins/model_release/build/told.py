"""What a library's error says, in one line."""

from __future__ import annotations

import re

# torch's allocator, of the processor and of a GPU.
_NO_MEMORY = re.compile(
    r"(can't allocate memory|not enough memory|out of memory)[^\n]*?(?:allocate (\d+) bytes|$)", re.I
)


def first_line(error: BaseException) -> str:
    """The line of a (TorchScript) error that says what happened.

    Raises `MemoryError` for an error that says that memory ran out: that is nobody's checkpoint.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next(
        (line for line in lines if line.startswith("RuntimeError")), lines[0] if lines else type(error).__name__
    )
    if match := _NO_MEMORY.search(str(error)):
        raise MemoryError(f"{int(match[2]) / 1e9:.1f} GB more" if match[2] else "more") from error
    return found
