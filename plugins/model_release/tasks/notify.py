"""Who is told: one message for each change of a release's state, by Airflow's own notifiers.

A release never fails because somebody could not be told: the trouble is a line in the log. What was said is noted in
the decision record before it is sent, so that a task that runs again does not say it twice; where nothing could be sent
the note is taken back.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from model_release.errors import ReleaseError
from model_release.spec import Email, ModelSpec, Notify, Slack, Webhook
from model_release.tasks import records
from model_release.tasks.run import Run

if TYPE_CHECKING:
    from model_release.judging.record import Record
    from model_release.release.outcome import Outcome

STARTED = "started"
NEEDS_YOU = "needs you"
PROMOTED = "promoted"
ROLLED_BACK = "rolled back"
INCONCLUSIVE = "inconclusive"
FAILED = "failed"
SWEPT = "swept"
LATE = "takes long"

_OF_KIND = {"promoted": PROMOTED, "first": PROMOTED, "rolled_back": ROLLED_BACK, "failed": FAILED}

_SECONDS = 10  # for one way of telling; a release does not wait longer for it
_SECRET = 6  # characters: what is shorter is a word of an address (`api`, `v1`), and no secret
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What is told: the same words and figures to everybody."""

    event: str
    model: str
    service: str
    version: str | None
    sentence: str
    traffic: Mapping[str, int]
    page: str
    run: str

    @property
    def title(self) -> str:
        return f"{self.model}: {self.event}"

    def as_dict(self) -> dict[str, Any]:
        """The webhook's JSON."""
        return {**vars(self), "traffic": dict(self.traffic)}


def event_of(outcome: Outcome) -> str | None:
    """How an outcome is told; None: it (nothing new, published) is not worth a message."""
    return INCONCLUSIVE if outcome.undecided else _OF_KIND.get(outcome.kind)


def tell(spec: ModelSpec, run: Run, event: str, sentence: str, *, which: str = "", attempt: int = 1) -> None:
    """Tells everybody in the model file's `notify` of `event`, once for each `which` of it.

    Never raises a trouble of the telling. While the store is away nothing can be noted: then the first `attempt` of the
    task tells, and its retries do not.
    """
    if spec.notify is None:
        return
    key, found = f"{event} {which}".strip(), list[bool]()

    def note(record: Record) -> None:
        found.append(key in record.notices)
        if not found[-1]:
            record.notices.append(key)

    try:
        record = records.change(spec, run, note)
    except ReleaseError as error:
        _log.warning("What people are told is not noted: %s", error)
        if attempt == 1:
            _sent(spec.notify, Message(event, spec.model, spec.service.key, None, sentence, {}, run.page, run.url))
        return
    if found[0]:  # a later try may find what this one noted, though it was told that it failed
        return
    shares = record.traffic[-1]["revisions"] if record.traffic else {}
    message = Message(event, spec.model, spec.service.key, record.version, sentence, shares, run.page, run.url)
    if not _sent(spec.notify, message):
        try:
            records.change(spec, run, lambda record: _take_back(record, key))
        except ReleaseError as error:
            _log.warning("The note of a message that was not sent stays: %s", error)


def _take_back(record: Record, key: str) -> None:
    if key in record.notices:
        record.notices.remove(key)


def _sent(notify: Notify, message: Message) -> bool:
    """Whether at least one of the ways took it: what one of them was told is not told to it again."""
    ways = [
        *([partial(_slack, notify.slack, message)] if notify.slack else []),
        *([partial(_email, notify.email, message)] if notify.email else []),
        *([partial(_webhook, notify.webhook, message)] if notify.webhook else []),
    ]
    taken = 0
    for way in ways:
        name = type(way.args[0]).__name__
        secrets: list[str] = []
        try:
            secrets = _kept_secret(way.args[0].connection)
            way()
        except Exception as error:  # whatever a provider raises: a message is never worth a release
            why = str(error)
            for secret in secrets:
                why = why.replace(secret, "***")
            _log.warning("%s was not told of %r: %s: %s", name, message.event, type(error).__name__, why)
        else:
            taken += 1
            _log.info("%s was told: %s", name, message.title)
    return taken > 0


# `notify` of a notifier, and not a call of it: that would render the message as a template, and it may hold text that
# somebody wrote into a form.


def _slack(slack: Slack, message: Message) -> None:
    from airflow.providers.slack.notifications.slack import SlackNotifier

    link = f"<{_slack_text(message.page)}|{_slack_text(message.service)}>"
    text = f"*{_slack_text(message.title)}*\n{_slack_text(message.sentence)}\n{link}"
    SlackNotifier(
        slack_conn_id=slack.connection,
        channel=slack.channel,
        text=text,
        username="Model releases",
        icon_url="",
        unfurl_links=False,
        unfurl_media=False,
        timeout=_SECONDS,
    ).notify({})


def _email(email: Email, message: Message) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    e = html.escape
    shares = "".join(f"<li>{e(name)}: {share} %</li>" for name, share in message.traffic.items())
    body = (
        f"<p><b>{e(message.title)}</b> ({e(message.service)}, version {e(message.version or 'none yet')})</p>"
        f"<p>{e(message.sentence)}</p><ul>{shares}</ul>"
        f'<p><a href="{e(message.page)}">The release</a> · <a href="{e(message.run)}">The run</a></p>'
    )
    SmtpNotifier(
        smtp_conn_id=email.connection,
        to=list(email.to),
        subject=message.title,
        html_content=body,
    ).notify({})


def _webhook(webhook: Webhook, message: Message) -> None:
    from airflow.providers.http.notifications.http import HttpNotifier

    HttpNotifier(
        http_conn_id=webhook.connection,
        json=message.as_dict(),
        extra_options={"timeout": _SECONDS},
    ).notify({})


def _kept_secret(conn_id: str) -> list[str]:
    """What of a connection is nobody's to read, the longest first; Airflow's logs show `***` for it from now on.

    Airflow knows of passwords. A webhook's secret is often its address: `https://hooks.example/services/T0/B0/…`.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.log import mask_secret

    connection = BaseHook.get_connection(conn_id)
    _, _, path = str(connection.host or "").rpartition("://")[2].partition("/")
    user, at, _ = str(connection.host or "").rpartition("://")[2].partition("/")[0].rpartition("@")
    said = [path, *re.split(r"[/?&=]", path), *(user.split(":") if at else ()), connection.password or ""]
    said += [value for value in _leaves(connection.extra_dejson) if value]
    found = sorted({one for one in said if len(one) >= _SECRET}, key=len, reverse=True)
    for one in found:
        mask_secret(one)
    return found


def _leaves(given: Any) -> Iterator[str]:
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list):
        for one in given:
            yield from _leaves(one)
    elif isinstance(given, str):
        yield given


def _slack_text(text: str) -> str:
    """Slack's three control characters, as its documentation says to write them."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
