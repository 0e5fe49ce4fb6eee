"""The parts of a model file about people: who is asked, and who is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .units import Part, PositiveDuration

Approval = Literal["never", "on_inconclusive", "before_promote"]


class Slack(Part):
    """A message into a channel, by the Slack provider's connection."""

    connection: str = Field("slack_default", min_length=1)
    channel: str = Field(min_length=1)


class Email(Part):
    """A mail by the SMTP provider's connection."""

    connection: str = Field("smtp_default", min_length=1)
    to: tuple[str, ...] = Field(min_length=1)


class Webhook(Part):
    """JSON by POST to an `http` connection's address."""

    connection: str = Field(min_length=1)


class Notify(Part):
    """Who is told when a release starts, takes long, needs an answer, is promoted, rolled back, undecided, or swept."""

    slack: Slack | None = None
    email: Email | None = None
    webhook: Webhook | None = None
    after: PositiveDuration | None = Field(
        None, description="How long after it was queued a run that has not ended takes too long, which is told once."
    )

    @model_validator(mode="after")
    def _somebody(self) -> Notify:
        if self.slack is None and self.email is None and self.webhook is None:
            raise ValueError("nobody would be told: slack, email or webhook says who")
        return self
