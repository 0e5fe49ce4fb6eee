"""The small words of a model file: durations, names, prefixes, shares."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> timedelta:
    """`500ms`, `10s`, `30m`, `2h`, `1d` as a timedelta; everything else is a `ValueError` that says how to write it."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", str(value).strip())
    if match is None:
        hint = f"{value}s" if isinstance(value, int | float) else "10s"
        raise ValueError(f"{value!r} is no duration; a number with ms, s, m, h or d is, such as {hint}")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{value!r} is longer than {timedelta.max.days}d, the longest duration") from None


def format_duration(value: timedelta) -> str:
    """The shortest exact form that `parse_duration` reads back."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % round(_UNITS[unit] * 1000) == 0:
            return f"{milliseconds // round(_UNITS[unit] * 1000)}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than 0s")
    return value


_DURATION_SCHEMA = {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$", "examples": ["10s", "30m"]}
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]

# A DNS label (RFC 1035): KServe's own rule for InferenceServices, and short enough for `<tag>-<name>-predictor-00001`.
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, Field(pattern=DNS_LABEL, max_length=40)]
# Names of buckets, by who runs them. Google takes longer ones where they have dots.
S3_BUCKET = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
GCS_BUCKET = "[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
AZURE_CONTAINER, AZURE_ACCOUNT = "[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", "[a-z0-9]{3,24}"
# Prefixes of stores, all ending in `/`.
_FOLDERS = "([A-Za-z0-9._-]+/)*"
_S3 = rf"s3://{S3_BUCKET}/{_FOLDERS}"
_GCS = rf"gs://{GCS_BUCKET}/{_FOLDERS}"
_AZURE = rf"abfss?://{AZURE_CONTAINER}@{AZURE_ACCOUNT}\.dfs\.core\.windows\.net/{_FOLDERS}"
_ANY_STORE = rf"^({_S3}|{_GCS}|{_AZURE})$"


def check_store(uri: str) -> str:
    """The prefix of a store, or a `ValueError` that says what one looks like."""
    if not re.fullmatch(_ANY_STORE, uri):
        raise ValueError(
            f"{uri!r} is no prefix of a store; s3://bucket/folder/, gs://bucket/folder/ or "
            "abfss://container@account.dfs.core.windows.net/folder/ is"
        )
    return uri


S3Prefix = Annotated[str, Field(pattern=f"^{_S3}$")]
GcsPrefix = Annotated[str, Field(pattern=f"^{_GCS}$")]
AzurePrefix = Annotated[str, Field(pattern=f"^{_AZURE}$")]
StorePrefix = Annotated[str, AfterValidator(check_store), WithJsonSchema({"type": "string", "pattern": _ANY_STORE})]


def _is_a_place(place: str) -> str:
    return check_store(place) if re.match(r"s3:|gs:|abfss?:|.*://", place) else place


# A folder relative to the project's own, or a store's prefix.
Place = Annotated[str, Field(min_length=1), AfterValidator(_is_a_place)]

# What slices of the traffic are told by: a label, and with `-` for `_` the end of a header's name.
SLICE = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
Share = Annotated[float, Field(gt=0, lt=1)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
