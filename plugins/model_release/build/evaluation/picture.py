"""The confusion matrix as a picture: rows are what the images show, columns what the model says."""

from __future__ import annotations

import io
from collections.abc import Sequence

#: More labels than this have no room for their names; more than the other none for counts.
_NAMED, _COUNTED = 40, 15
_LONGEST = 18  # characters of a label
#: As many labels as the picture has pixels for: of a square of ImageNet-21k's the numbers alone take gigabytes.
LARGEST = 1000


def confusion_png(labels: Sequence[str], confusion: Sequence[Sequence[int]], title: str) -> bytes:
    """A PNG. The shade is the share of a label's images, the figure their number; equal input, equal bytes."""
    # Its own figure and canvas, never pyplot: that keeps state, and asks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(labels)
    side = min(12.0, max(4.5, 2.2 + 0.42 * count))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sums = [max(sum(row), 1) for row in confusion]
    shares = [[cell / total for cell in row] for row, total in zip(confusion, sums, strict=True)]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("answered")
    axes.set_ylabel("label of the image")
    names = [_short(label) for label in labels] if count <= _NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if count <= _COUNTED:
        for row, (cells, line) in enumerate(zip(confusion, shares, strict=True)):
            for column, (cell, share) in enumerate(zip(cells, line, strict=True)):
                if cell:
                    colour = "white" if share > 0.5 else "black"
                    axes.text(column, row, str(cell), ha="center", va="center", fontsize=8, color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _short(label: str) -> str:
    # matplotlib would read a dollar as the begin of a formula.
    text = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    return text.replace("$", r"\$")
