"""Pictures of scores. Each function returns a matplotlib figure and shows or saves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def confusion_matrix(counts: NDArray[np.int64], labels: Sequence[str], title: str) -> Figure:
    """Counts with the row shares below them; colour is the share, so that rare classes can be read too.

    Args:
        counts: (classes, classes), true classes in rows.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        axes.text(
            column, row, f"{counts[row, column]}\n{shares[row, column]:.0%}", ha="center", va="center",
            color="white" if shares[row, column] > 0.6 else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(picture, label="share of the true class")
    return figure


def learning_curves(history: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], best_epoch: int) -> Figure:
    """Loss, accuracy and macro-F1 of training and validation by epoch; the chosen epoch is marked.

    Args:
        history: (training, validation) metrics of each epoch, from the first.
        best_epoch: counted from 1.
    """
    names = list(history[0][1])
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    epochs = range(1, len(history) + 1)
    for position, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        axes.plot(epochs, [train[name] for train, _ in history], "o-", ms=3, label="training")
        axes.plot(epochs, [validation[name] for _, validation in history], "o-", ms=3, label="validation")
        axes.axvline(best_epoch, color="grey", ls=":", label="chosen epoch")
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        if position == 0:
            axes.legend()
    return figure
