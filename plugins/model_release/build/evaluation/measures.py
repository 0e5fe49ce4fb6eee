"""What answers to labelled images say of a model, alone and beside another one. Pure: no I/O, no torch, no NumPy.

An image that got no answer (refused as unreadable, or the model failed on it) is an image answered wrong: whoever
sends one like it gets nothing either. It is in accuracy, recall and flips, and in no cell of the confusion matrix and
no bin of the calibration, since it has neither a predicted label nor a confidence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

#: Of equal width, as many as in Guo et al. 2017.
BINS = 15
#: A square of more labels than this would make a decision record of megabytes.
LARGEST_SQUARE = 100
#: As many of the images that a record lists; how many there are in all stands beside.
LISTED = 50


@dataclass(frozen=True)
class Answer:
    """The likeliest label of one image and its score (0 to 1); or None, and why there is no answer."""

    label: str | None
    score: float = 0.0
    fault: str = ""


Truth = Mapping[str, str]  # {image: label}
Answers = Mapping[str, Answer]  # {image: answer}


def measures(labels: Sequence[str], truth: Truth, answers: Answers) -> dict[str, Any]:
    """How well a model with these labels answers: what a decision record holds of one version.

    `accuracy` is the share of right answers of all images; `recall` {label: the share of its images found} and
    `support` {label: number of its images}, for the labels that have images. `confusion[i][j]` counts images of label
    i answered as label j, in the order of `labels` (None for more than 100 labels); `confused` lists the commonest
    mistakes. `unanswered` counts and lists images without an answer. Raises `ValueError` for no images: of nothing,
    nothing can be said.
    """
    if not truth:
        raise ValueError("there are no images to measure by")
    pairs = Counter((label, answers[name].label) for name, label in truth.items())
    support = Counter(truth.values())
    mistakes = [(pair, count) for pair, count in pairs.items() if pair[1] is not None and pair[0] != pair[1]]
    mistakes.sort(key=lambda mistake: (-mistake[1], mistake[0]))
    faults = [{"name": name, "why": answers[name].fault} for name in truth if answers[name].label is None]
    return {
        "images": len(truth),
        "accuracy": sum(pairs[label, label] for label in support) / len(truth),
        "recall": {label: pairs[label, label] / support[label] for label in labels if support[label]},
        "support": {label: support[label] for label in labels if support[label]},
        "labels": list(labels),
        "confusion": square(labels, truth, answers) if len(labels) <= LARGEST_SQUARE else None,
        "confused": [{"label": was, "as": said, "count": count} for (was, said), count in mistakes[:10]],
        "unanswered": {"count": len(faults), "images": faults[:LISTED]},
        "calibration": calibration(truth, answers),
    }


def square(labels: Sequence[str], truth: Truth, answers: Answers) -> list[list[int]]:
    """The confusion matrix: rows are the true labels, columns the answers, both in the order of `labels`."""
    pairs = Counter((label, answers[name].label) for name, label in truth.items())
    return [[pairs[label, said] for said in labels] for label in labels]


def calibration(truth: Truth, answers: Answers) -> dict[str, Any]:
    """Whether confidence is what it says: the expected calibration error, and its bins for a reliability diagram.

    `ece` is the mean distance between confidence and accuracy over 15 bins of equal width, (0, 1/15] and so on,
    weighted by the bins' counts (Naeini, Cooper, Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning"; with these bins in Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv
    1706.04599, equation 3). None where no image was answered.
    """
    sums: list[list[float]] = [[0, 0.0, 0] for _ in range(BINS)]  # count, confidence, right
    for name, label in truth.items():
        answer = answers[name]
        if answer.label is not None:
            # The first bin takes 0 as well; scores are rounded, and a sum of rounding may pass 1.
            place = min(max(ceil(answer.score * BINS), 1), BINS) - 1
            for slot, part in enumerate((1, answer.score, answer.label == label)):
                sums[place][slot] += part
    edges = [number / BINS for number in range(BINS + 1)]
    bins = [
        {
            "from": low,
            "to": high,
            "count": int(count),
            "confidence": confidence / count if count else None,
            "accuracy": right / count if count else None,
        }
        for (low, high), (count, confidence, right) in zip(pairwise(edges), sums, strict=True)
    ]
    answered = sum(count for count, _, _ in sums)
    gap = sum(abs(confidence - right) for _, confidence, right in sums)
    return {"ece": gap / answered if answered else None, "bins": bins}


def comparison(truth: Truth, stable: Answers, candidate: Answers) -> dict[str, Any]:
    """The candidate beside the stable version, on the same images.

    `negative_flips`: images that stable answers right and the candidate wrong, a regression that accuracy hides when
    as many others got better (Yan et al. 2021, "Positive-Congruent Training", arXiv 2011.09161). `churn`: the share
    of images with another answer, right or wrong (Milani Fard et al. 2016, "Launch and Iterate: Reducing Prediction
    Churn"). `mcnemar`: `worse` and `better` count the images that only stable, or only the candidate, answers right.
    """
    right_before = {name for name, label in truth.items() if stable[name].label == label}
    right_now = {name for name, label in truth.items() if candidate[name].label == label}
    flipped = [name for name in truth if name in right_before and name not in right_now]
    better = len(right_now - right_before)
    churned = sum(stable[name].label != candidate[name].label for name in truth)
    return {
        "skipped": None,
        "mcnemar": {"worse": len(flipped), "better": better, "p": mcnemar(len(flipped), better)},
        "negative_flips": {
            "count": len(flipped),
            "share": len(flipped) / len(truth),
            "images": [
                {"name": name, "label": truth[name], "was": stable[name].label, "is": candidate[name].label}
                for name in flipped[:LISTED]
            ],
        },
        "churn": churned / len(truth),
    }


def skipped(reason: str) -> dict[str, Any]:
    """A comparison that was not made, and why."""
    return {"skipped": reason, "mcnemar": None, "negative_flips": None, "churn": None}


def mcnemar(worse: int, better: int) -> float:
    """The p value of McNemar's exact test: the chance of so uneven a split of the discordant images, or a more uneven
    one, when each of them is as likely to have got worse as better.

    Two-sided binomial test of `worse` in `worse + better` at one half: twice the smaller tail, at most 1 (McNemar
    1947, "Note on the sampling error of the difference between correlated proportions"; its exact form in Fay 2010,
    "Two-sided exact tests", R Journal 2/1). Counted in whole numbers, so large samples lose nothing.
    """
    discordant, fewer = worse + better, min(worse, better)
    # Each binomial coefficient from the one before: 10 000 of them made anew take half a minute.
    tail = term = 1
    for count in range(fewer):
        term = term * (discordant - count) // (count + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))
