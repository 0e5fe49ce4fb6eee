"""What stops the sandbox: one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class SandboxError(Exception):
    """A part is missing, a port is taken, a program does not start. The message is one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())
