"""Pictures of scores. Each function returns a matplotlib figure and shows or saves nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ultrasound.images.preparation import Pixels
from ultrasound.scoring import metrics
from ultrasound.scoring.intervals import Interval

TRUE_OUTLINE, FOUND_OUTLINE = "#ffd600", "#00d1ff"  # apart for every kind of colour vision, and from every grey
# Of the classes, as on the pages that the figures stand on (images/report.css).
CLASS_COLOURS = ("#0068a8", "#b84600", "#00785a", "#8a3f8f", "#7a6200", "#5b5f66")


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


def learning_curves(history: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], chosen_epoch: int) -> Figure:
    """Loss, accuracy and macro-F1 of training and validation by epoch, those that there are; the chosen one is marked.

    Args:
        history: (training, validation) metrics of each epoch, from the first.
        chosen_epoch: counted from 1.
    """
    names = list(history[0][1] or history[0][0])
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for position, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        for side, label in enumerate(("training", "validation")):
            values = [epoch[side].get(name, np.nan) for epoch in history]
            axes.plot(range(1, len(history) + 1), values, "o-", ms=3, label=label)
        axes.axvline(chosen_epoch, color="grey", ls=":", label="chosen epoch")
        axes.set(xlabel="epoch", title=metrics.title(name))
        if position == 0:
            axes.legend()
    return figure


def fold_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Validation metrics by epoch, a line a fold.

    Args:
        histories: name of the fold -> validation metrics of each epoch, from the first.
    """
    names = list(next(iter(histories.values()))[0])
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for position, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        for fold, history in histories.items():
            axes.plot(range(1, len(history) + 1), [epoch[name] for epoch in history], "o-", ms=3, label=fold)
        axes.set(xlabel="epoch", title=f"validation {metrics.title(name)}")
        if position == 0:
            axes.legend()
    return figure


def augmented(views: NDArray[np.float32], labels: Sequence[str]) -> Figure:
    """Images in rows: as they are, then under random changes.

    Args:
        views: (images, views, height, width) in [0, 1]; the first view of each is unchanged.
    """
    figure = Figure(figsize=(1.7 * views.shape[1], 1.7 * len(views)), layout="constrained")
    for row, (panels, label) in enumerate(zip(figure.subplots(*views.shape[:2], squeeze=False), labels, strict=True)):
        for column, axes in enumerate(panels):
            axes.imshow(views[row, column], cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        panels[0].set_ylabel(label)
        if row == 0:
            panels[0].set_title("as prepared")
            panels[1].set_title("as trained on", loc="left")
    return figure


def outlines(pictures: Mapping[str, Sequence[tuple[Pixels, NDArray[np.bool_], NDArray[np.bool_], str]]]) -> Figure:
    """Scans in rows, with the true outline and the found one.

    Args:
        pictures: what a row shows -> for each scan (height, width) pixels, true mask, found mask, and what it is.
    """
    columns = max((len(row) for row in pictures.values()), default=1)
    shape = (max(len(pictures), 1), columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * shape[0]), layout="constrained")
    for panels, (title, row) in zip(figure.subplots(*shape, squeeze=False), pictures.items(), strict=False):
        for axes in panels:
            axes.set_axis_off()
        for axes, (pixels, truth, found, words) in zip(panels, row, strict=False):
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            for mask, colour, style in ((truth, TRUE_OUTLINE, "-"), (found, FOUND_OUTLINE, "--")):
                if mask.any():
                    axes.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1.2)
            axes.set_title(f"{title}\n{words}", fontsize=7)
    handles = [Line2D([], [], color=TRUE_OUTLINE, label="true outline"),
               Line2D([], [], color=FOUND_OUTLINE, ls="--", label="found")]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def comparison(
    scores: Mapping[str, Mapping[str, Interval]],
    repetitions: Mapping[str, Mapping[str, Sequence[float]]],
    differences: Mapping[str, Interval],
    title: str,
) -> Figure:
    """Protocols side by side, a panel a metric: the mean with its interval, and each repetition as a point.

    Args:
        scores: protocol -> metric -> value and interval.
        repetitions: protocol -> metric -> the single values.
        differences: metric -> difference of the protocols, for the panels' titles.
    """
    figure = Figure(figsize=(3.2 * len(differences), 4), layout="constrained")
    for axes, (metric, difference) in zip(
        figure.subplots(1, len(differences), squeeze=False)[0], differences.items(), strict=True
    ):
        for position, (protocol, found) in enumerate(scores.items()):
            value, low, high = found[metric]
            axes.errorbar(position, value, [[value - low], [high - value]], fmt="s", capsize=6, color=f"C{position}")
            points = repetitions[protocol][metric]
            axes.plot([position + 0.2] * len(points), points, "o", ms=4, mfc="none", color="grey")
        axes.set_xticks(range(len(scores)), list(scores))
        axes.set(xlim=(-0.5, len(scores) - 0.3), ylabel=metrics.title(metric))
        axes.set_title(
            f"difference {difference.value:+.3f}\n({difference.low:+.3f} to {difference.high:+.3f})", size=10
        )
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle(title, size=11)
    return figure


def score_against_latency(points: Mapping[str, tuple[float, Interval]], size: int) -> Figure:
    """Models by what they cost and what they score, with intervals.

    Args:
        points: model -> (milliseconds for one image on a CPU, macro-F1).
        size: of the images, pixels.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (milliseconds, score)) in enumerate(points.items()):
        value, low, high = score
        axes.errorbar(milliseconds, value, [[value - low], [high - value]], fmt="o", capsize=4, color=f"C{number}",
                      label=name)  # fmt: skip
    axes.set(xlabel=f"latency of one image of {size} x {size} pixels on the CPU, ms", xscale="log",
             ylabel="macro-F1 out of fold, 95 % interval")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def reliability(curves: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """How often the most probable class is right against its probability; calibrated ones lie on the diagonal.

    Args:
        curves: name -> what `calibration.reliability` returns.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], ":", color="grey")
    for number, (name, bins) in enumerate(curves.items()):
        axes.plot(bins["confidence"], bins["accuracy"], "o-", ms=4, color=f"C{number}", label=name)
    axes.set(
        xlim=(0.3, 1.01), ylim=(0, 1.02), xlabel="probability of the most probable class", ylabel="share that is right"
    )
    axes.set_title(f"{title}\nbins of equal numbers of images", size=10)
    axes.legend()
    return figure


def roc(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], point: tuple[float, float], title: str
) -> Figure:
    """ROC curves, one class against the rest each, and the operating point.

    Args:
        curves: class -> (false positive rates, true positive rates).
        point: (false positive rate, true positive rate) of the operating point.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], ":", color="grey")
    for (label, (false, true)), colour in zip(curves.items(), itertools.cycle(CLASS_COLOURS), strict=False):
        axes.step(false, true, where="post", color=colour, label=label)
    axes.plot(*point, "o", ms=8, mfc="none", color="black", label="operating point")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="lower right")
    return figure


def precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], shares: Mapping[str, float], title: str
) -> Figure:
    """Precision against recall, one class against the rest each; dotted, what guessing gives.

    Args:
        curves: class -> (recalls, precisions).
        shares: class -> its share of the images.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for (label, (recall, precision)), colour in zip(curves.items(), itertools.cycle(CLASS_COLOURS), strict=False):
        axes.step(recall, precision, where="post", color=colour, label=label)
        axes.axhline(shares[label], ls=":", color=colour)
    axes.set(xlabel="recall", ylabel="precision", title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="lower left")
    return figure


def decision_curve(curve: pd.DataFrame, positive: str, title: str) -> Figure:
    """Net benefit against the threshold.

    Args:
        curve: what `calibration.decision_curve` returns.
    """
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, label) in enumerate(
        (("model", "act on the model"), ("all", f"act on all as {positive}"), ("none", "act on none"))
    ):
        axes.plot(curve["threshold"], curve[name], "-" if number == 0 else "--", color=f"C{number}", label=label)
    highest = curve[["model", "all"]].max().max()
    axes.set(xlabel=f"threshold of the probability of {positive}", ylabel="net benefit, true positives an image",
             title=title, ylim=(-0.1 * highest, 1.1 * highest))  # fmt: skip
    axes.legend()
    return figure


def slices(table: pd.DataFrame, title: str) -> Figure:
    """Scores of slices with their intervals; those of few images in grey.

    Args:
        table: what `evaluation.by_slice` returns.
    """
    names = ("accuracy", "sensitivity", "specificity")
    figure = Figure(figsize=(10.5, 0.32 * len(table) + 1.4), layout="constrained")
    rows = np.arange(len(table))[::-1]
    for position, (axes, name) in enumerate(zip(figure.subplots(1, len(names), sharey=True), names, strict=True)):
        for row, (_, part) in zip(rows, table.iterrows(), strict=True):
            value, low, high = part[name], part[f"{name}_low"], part[f"{name}_high"]
            if value == value:
                color = "0.65" if part["small"] else "C0"
                axes.plot([low, high], [row, row], "-|", color=color)
                axes.plot(value, row, "o", ms=4, color=color)
        axes.set(xlim=(-0.02, 1.02), title=name if position == 0 else f"{name} at the operating point")
        axes.grid(axis="x", alpha=0.3)
        if position == 0:
            words = [f"{part['by']}: {part['slice']} ({part['images']})" for _, part in table.iterrows()]
            axes.set_yticks(rows, words, size=8)
    figure.suptitle(title, size=11)
    return figure
