"""What a checkpoint's classes are called.

One rule for all: as transformers reads them, in the order of the head's outputs, each as text, and no two alike. What
people must know of it (`notes`): classes without a name are called LABEL_3, as transformers calls them, and a name
that several classes have is told apart by their numbers: "crane (134)", "crane (517)". A timm checkpoint has
`label_names`, or none and as many classes as one of ImageNet's sets, whose names are then timm's own.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from model_release.build import timm_config
from model_release.errors import CheckpointError

CONFIG = "config.json"

#: ImageNet-21k has 21 843.
MAX_LABELS = 100_000
#: Characters of one label.
MAX_LABEL = 500
# transformers' own, where a configuration says nothing.
_DEFAULT_COUNT = 2
_NAMED = 5


def labels_of(config: Mapping[str, Any], origin: str) -> tuple[tuple[str, ...], list[str]]:
    """The labels of a `config.json`, and notes on them for whoever releases it.

    Raises `CheckpointError`, naming `origin`, where the names do not count from 0 without gaps, are no text, or where
    there are far too many.
    """
    named = _named(config, origin)
    for index, label in named.items():
        if label is not None and len(label) > MAX_LABEL:
            raise CheckpointError(
                f"{origin}: label {index} in {CONFIG} has {len(label)} characters; the limit is {MAX_LABEL}"
            )
        if label is not None and any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
            raise CheckpointError(f"{origin}: label {index} in {CONFIG} has a character that is no text: {label!r}")
    labels = [f"LABEL_{index}" if named[index] is None else str(named[index]) for index in range(len(named))]
    notes = []
    unnamed = [label for index, label in enumerate(labels) if label == f"LABEL_{index}"]
    if unnamed:
        some = "" if len(unnamed) == len(labels) else f" of {len(labels)}"
        notes.append(f"{len(unnamed)}{some} classes have no name and are called {_some(unnamed)}")
    times = Counter(labels)
    doubles = {label for label, count in times.items() if count > 1}
    if doubles:
        labels = [f"{label} ({index})" if label in doubles else label for index, label in enumerate(labels)]
        again = next((label for label, count in Counter(labels).items() if count > 1), None)
        if again is not None:
            raise CheckpointError(
                f"{origin}: id2label in {CONFIG} has labels that its numbers cannot tell apart: {again!r} is there"
            )
        apart = [label for label in labels if label not in times]
        notes.append(f"several classes have one name and are told apart by their numbers: {_some(apart)}")
    return tuple(labels), notes


def one_of_several(label: str, known: Collection[str]) -> list[str]:
    """The labels that `label` was told apart into: "crane" → "crane (134)", "crane (517)"."""
    numbered = [
        name
        for name in known
        if name.startswith(f"{label} (") and name[len(label) + 2 : -1].isdigit() and name[-1] == ")"
    ]
    return sorted(numbered) if len(numbered) > 1 else []


def _named(config: Mapping[str, Any], origin: str) -> dict[int, str | None]:
    named, count, names = config.get("id2label"), config.get("num_labels"), config.get("label_names")
    if timm_config.is_timm(config):
        count = timm_config.count(config)
        names = timm_config.imagenet_names(count) if names is None and named is None else names
        named = named if names is None else None
    if named is None and isinstance(names, list):
        named = dict(enumerate(names))
    if not named and count is None and config.get("label2id"):
        raise CheckpointError(
            f"{origin}: {CONFIG} has no id2label, which names the classes, though it has label2id; add it"
        )
    if named is not None and not isinstance(named, dict):
        raise CheckpointError(f'{origin}: id2label in {CONFIG} is no object; {{"0": "cat", "1": "dog"}} would be right')
    number = len(named) if named else _DEFAULT_COUNT if count is None else count
    if not isinstance(number, int) or number < 1:
        raise CheckpointError(f"{origin}: {CONFIG} has num_labels {number!r}; a classifier has at least one")
    if number > MAX_LABELS:
        raise CheckpointError(f"{origin}: {CONFIG} has {number} labels; the limit is {MAX_LABELS}")
    if not named:
        return dict.fromkeys(range(number))
    try:
        found = {int(index): None if label is None else str(label) for index, label in named.items()}
    except ValueError:
        raise CheckpointError(f"{origin}: id2label in {CONFIG} has a key that is no number") from None
    if sorted(found) != list(range(len(found))):
        raise CheckpointError(f"{origin}: id2label in {CONFIG} does not count from 0 to {len(found) - 1} without gaps")
    return found


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:_NAMED]) + (f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else "")
