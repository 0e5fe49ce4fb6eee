"""Evaluation before traffic: a packaged archive on labelled images, alone and beside the stable version.

What comes of it is the decision record's `evaluation`:

```
data        uri, digest, digest_of, images
candidate   version, accuracy, recall, support, labels, confusion, confused, unanswered, calibration
stable      the same, or None
comparison  mcnemar, negative_flips, churn; or skipped: why there is none
slices      for each slice of the images: by, slice, images, accuracy; before, regressions, lower, upper
float32     of another precision: what the same checkpoint answers in float32, and the comparison with it
gates       each limit of the model file: name, limit, value, passed (None: could not be asked), sentence
passed      whether no gate failed
```
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from model_release.build.evaluation.answers import Subject, answers
from model_release.build.evaluation.gates import check_limits, gates, percent, some
from model_release.build.evaluation.images import LabelledImages
from model_release.build.evaluation.measures import Answer, comparison, measures, skipped, square
from model_release.build.evaluation.picture import LARGEST, confusion_png
from model_release.build.evaluation.slices import by_slice
from model_release.errors import ArchiveError, EvaluationFailed
from model_release.spec import Evaluation

if TYPE_CHECKING:
    from model_release.store.store import Store

Log = Callable[[str], None]

_WIDEST = 30  # characters of a label in the log's table
_ROWS = 40
_WORST = 10  # slices in the log
_GATE = {False: "FAILED", None: "not asked"}


def evaluate(
    limits: Evaluation,
    images: LabelledImages,
    candidate: Subject,
    stable: Subject | str,
    store: Store,
    *,
    float32: Subject | str | None = None,
    log: Log,
) -> tuple[dict[str, Any], bytes]:
    """The record's `evaluation` and the picture (PNG) of the candidate's confusion matrix.

    `stable` is the archive to compare with, or the reason why there is none. Answers are kept in `store`; run again,
    nothing is asked twice. A stable version with other labels, or one that answers no image here, is not compared
    with, and the record says so. The caller decides what a failed gate means (`check`). `float32` is the same
    checkpoint's archive in float32 where the candidate is in another precision, or the reason why there is none.

    Raises `SpecError` for images that do not fit the model or its limits, `ArchiveError` when the candidate, or its
    checkpoint in float32, answers none of them, and the store's errors.
    """
    images.check_labels(candidate.labels)
    check_limits(limits, images.support, images.uri)
    with TemporaryDirectory(prefix="images-") as folder:
        ask = partial(answers, images=images, store=store, batch=limits.batch, scratch=Path(folder), log=log)
        found = ask(candidate)
        before = stable if isinstance(stable, str) else _before(candidate, stable, ask)
        exact = ask(float32) if isinstance(float32, Subject) else float32
    said = _measured(candidate, images, found)
    beside, compared = None, skipped(before if isinstance(before, str) else "")
    if isinstance(stable, Subject) and not isinstance(before, str):
        beside, compared = _measured(stable, images, before), comparison(images.truth, before, found)
    bits: dict[str, Any] | None = None
    if isinstance(exact, str):
        bits = {"archive": None, "accuracy": None, **skipped(exact)}
    elif isinstance(float32, Subject) and exact is not None:
        accuracy = _measured(candidate, images, exact)["accuracy"]
        bits = {"archive": float32.sha256, "accuracy": accuracy, **comparison(images.truth, exact, found)}
    asked = gates(limits, said, compared, bits)
    evaluation = {
        "data": images.record,
        "candidate": said,
        "stable": beside,
        "comparison": compared,
        "slices": by_slice(images.truth, images.slices, None if isinstance(before, str) else before, found),
        **({"float32": bits} if bits else {}),
        "gates": asked,
        "passed": all(gate["passed"] is not False for gate in asked),
    }
    title = f"{candidate.version}: {percent(said['accuracy'])} of {len(images.truth)} images right"
    drawn = _drawn(candidate.labels, images.truth, found)
    if len(drawn) < len(candidate.labels):
        title += f"; the {len(drawn)} commonest of {len(candidate.labels)} labels"
    return evaluation, confusion_png(drawn, square(drawn, images.truth, found), title)


def check(evaluation: dict[str, Any]) -> None:
    """Raises `EvaluationFailed`, with one sentence that names each failed gate, where one failed."""
    failed = [gate["sentence"] for gate in evaluation["gates"] if gate["passed"] is False]
    if failed:
        data, version = evaluation["data"], evaluation["candidate"]["version"]
        raise EvaluationFailed(
            f"version {version} on {data['images']} images of {data['uri']}: {some(failed, 20, '; ')}"
        )


def summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What `version.json` keeps of it: small, and true for ever, whatever is stable later."""
    candidate, stable, compared = (evaluation[part] for part in ("candidate", "stable", "comparison"))
    flips = compared["negative_flips"]
    return {
        "data": evaluation["data"],
        "accuracy": candidate["accuracy"],
        "recall": candidate["recall"],
        "ece": candidate["calibration"]["ece"],
        "unanswered": candidate["unanswered"]["count"],
        "stable": stable["version"] if stable else None,
        "regressions": flips["share"] if flips else None,
        "passed": evaluation["passed"],
        **({"float32": _short(evaluation["float32"])} if "float32" in evaluation else {}),
    }


def _short(bits: Mapping[str, Any]) -> dict[str, Any]:
    flips = bits["negative_flips"]
    return {name: bits[name] for name in ("archive", "accuracy")} | {"regressions": flips["share"] if flips else None}


def lines(evaluation: dict[str, Any]) -> list[str]:
    """The evaluation for a log: a sentence or two, and a table of recall by label."""
    data, candidate, stable, compared = (evaluation[part] for part in ("data", "candidate", "stable", "comparison"))
    ece = candidate["calibration"]["ece"]
    said = [
        f"version {candidate['version']} on {data['images']} images of {data['uri']}: accuracy "
        f"{percent(candidate['accuracy'])}, expected calibration error {'unknown' if ece is None else percent(ece)}"
    ]
    if unanswered := candidate["unanswered"]["count"]:
        first = [f"{image['name']} ({image['why']})" for image in candidate["unanswered"]["images"]]
        said.append(f"images without an answer, counted as wrong: {unanswered}, such as {some(first[:3])}")
    if stable is None:
        said.append(f"not compared with a stable version: {compared['skipped']}")
    else:
        test, flips = compared["mcnemar"], compared["negative_flips"]
        said.append(
            f"beside stable {stable['version']} (accuracy {percent(stable['accuracy'])}): right only now "
            f"{test['better']}, right only before {flips['count']} ({percent(flips['share'])}), McNemar's exact test "
            f"p = {test['p']:.2g}; {percent(compared['churn'])} of the answers differ"
        )
        if flips["count"]:
            first = [f"{flip['name']} ({flip['was']} → {flip['is'] or 'no answer'})" for flip in flips["images"]]
            said.append(f"right only before: {some(first[:5])}{', …' if flips['count'] > 5 else ''}")
    if (bits := evaluation.get("float32")) and bits["skipped"]:
        said.append(f"not compared with float32: {bits['skipped']}")
    elif bits:
        flips = bits["negative_flips"]
        said.append(
            f"beside the same checkpoint in float32 (accuracy {percent(bits['accuracy'])}): right only now "
            f"{bits['mcnemar']['better']}, right only in float32 {flips['count']} ({percent(flips['share'])}); "
            f"{percent(bits['churn'])} of the answers differ"
        )
    said += [_worse(row) for row in evaluation["slices"] if row.get("regressions")][:_WORST]
    said += _table(candidate, stable)
    asked = evaluation["gates"]
    said += [f"gate {_GATE[gate['passed']]}: {gate['sentence']}" for gate in asked if not gate["passed"]]
    if asked:
        said.append(f"gates passed: {sum(gate['passed'] is True for gate in asked)} of {len(asked)}")
    return said


def _worse(row: Mapping[str, Any]) -> str:
    worse, images = row["regressions"], row["images"]
    return (
        f"right only before in {row['by']}={row['slice']}: {worse} of {images} images ({percent(worse / images)}; of "
        f"all such images {percent(row['lower'])} to {percent(row['upper'])})"
    )


def _before(
    candidate: Subject, stable: Subject, ask: Callable[[Subject], dict[str, Answer]]
) -> dict[str, Answer] | str:
    """The stable version's answers, or why they cannot be compared with."""
    if candidate.sha256 == stable.sha256:
        return f"version {candidate.version} is the stable version itself"
    if set(candidate.labels) != set(stable.labels):
        gone = sorted(set(stable.labels) - set(candidate.labels))
        new = sorted(set(candidate.labels) - set(stable.labels))
        parts = [f"{some(names, 4)} only in the {whose}" for names, whose in ((gone, "old"), (new, "new")) if names]
        return f"the stable version {stable.version} has other labels: {'; '.join(parts)}"
    try:
        return ask(stable)
    except ArchiveError as error:
        return f"the stable version {stable.version} gives no answers here: {error}"


def _drawn(labels: Sequence[str], truth: Mapping[str, str], found: Mapping[str, Answer]) -> Sequence[str]:
    """The labels in the picture: all, or those that the most images have or are said to have."""
    if len(labels) <= LARGEST:
        return labels
    counts = Counter(truth.values()) + Counter(answer.label for answer in found.values() if answer.label is not None)
    commonest = {label for label, _ in counts.most_common(LARGEST)}
    return [label for label in labels if label in commonest]


def _measured(subject: Subject, images: LabelledImages, found: dict[str, Answer]) -> dict[str, Any]:
    return {"version": subject.version, **measures(subject.labels, images.truth, found)}


def _table(candidate: dict[str, Any], stable: dict[str, Any] | None) -> list[str]:
    recall = candidate["recall"]
    width = min(max(map(len, ["label", *recall])), _WIDEST)
    rows = [f"{'label':<{width}}  images   recall" + ("   stable" if stable else "")]
    # The worst first, where there is no room for all.
    shown = sorted(recall, key=lambda label: recall[label])[:_ROWS] if len(recall) > _ROWS else list(recall)
    for label in shown:
        row = f"{label[:width]:<{width}}  {candidate['support'][label]:>6}  {100 * recall[label]:>5.1f} %"
        rows.append(row + (f"  {100 * stable['recall'][label]:>5.1f} %" if stable else ""))
    if len(recall) > len(shown):
        rows.append(f"and {len(recall) - len(shown)} labels with a better recall")
    return rows
