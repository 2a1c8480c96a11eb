"""One recipe on random folds and on folds that keep near-duplicates together: what random folds pretend.

Both protocols score the same development images with the same recipe, seeds and number of folds. Nothing is chosen by
protocol, and the locked test set takes no part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray

from ultrasound.errors import InputError
from ultrasound.images import splitting
from ultrasound.images.prepared import Prepared
from ultrasound.learning import backbone, fitting, probe
from ultrasound.params import flatten, override
from ultrasound.scoring import figures, intervals, metrics
from ultrasound.scoring.intervals import Interval
from ultrasound.sections import Params
from ultrasound.tracking import classification, models, provenance, runs, training

RANDOM, GROUPED, DIFFERENCE = "random", "grouped", "difference"
PROTOCOLS = (RANDOM, GROUPED)
METRICS = ("accuracy", "macro_f1", "macro_auc")
BOOTSTRAP_SEED = 0

Probabilities = NDArray[np.float64]
# (protocol, seed, fold of each development image) -> out-of-fold probabilities (n, classes)
Recipe = Callable[[str, int, NDArray[np.int64]], Probabilities]


class Comparison(NamedTuple):
    """The same images, scored under both protocols.

    Attributes:
        samples: the development images.
        labels: class names.
        folds: protocol -> one array (n,) a seed.
        probabilities: protocol -> one array (n, classes) a seed, out of fold.
        scores: protocol or `difference` (random - grouped) -> metric -> mean over the seeds, with its interval.
        repetitions: the same keys -> metric -> one value a seed.
        suspects: see `suspect_labels`.
    """

    samples: pd.DataFrame
    labels: tuple[str, ...]
    folds: dict[str, list[NDArray[np.int64]]]
    probabilities: dict[str, list[Probabilities]]
    scores: dict[str, dict[str, Interval]]
    repetitions: dict[str, dict[str, list[float]]]
    suspects: pd.DataFrame


def compare(params: Params, prepared: Prepared) -> Comparison:
    """Run the recipe of `leakage.recipe` under both protocols, for every seed; under the active run.

    Raises:
        InputError: too few images or groups for the folds, or what `training.train` refuses.
        ParameterError: a model, weights or device that cannot be had.
    """
    rows = prepared.rows(splitting.DEVELOPMENT)
    samples, targets = prepared.samples.iloc[rows], training.class_numbers(params, prepared)[rows]
    groups = samples["group"].to_numpy(dtype=np.int64)
    seeds = range(params.leakage.seeds)
    folds = {
        protocol: [splitting.folds(samples["label"].tolist(), kept, params.split.folds, seed) for seed in seeds]
        for protocol, kept in ((RANDOM, None), (GROUPED, groups))
    }
    runs.log_dataset(prepared, rows, params.data.source, "cross-validation")
    recipe = (_probe if params.leakage.recipe == "probe" else _finetune)(params, prepared, rows, targets)
    found = {
        protocol: [recipe(protocol, seed, fold) for seed, fold in enumerate(folds[protocol])] for protocol in PROTOCOLS
    }
    scores, repetitions = _scores(targets, found, groups, params.leakage.resamples)
    suspects = suspect_labels(samples, params.data.classes, targets, np.mean(found[GROUPED], axis=0))
    return Comparison(samples, params.data.classes, folds, found, scores, repetitions, suspects)


def suspect_labels(
    samples: pd.DataFrame, labels: tuple[str, ...], targets: NDArray[np.int64], probabilities: Probabilities
) -> pd.DataFrame:
    """Images whose label the out-of-fold probabilities contradict, the most suspect first. Changes nothing.

    Confident learning (Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 70, 2021), ranked by
    the probability of the given label.

    Returns:
        `rank` from 1, `image_id`, `label`, `suggested` (the likeliest class), `p_label`, `p_suggested`.
    """
    found = find_label_issues(targets, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    suggested = probabilities[found].argmax(axis=1)
    return pd.DataFrame({
        "rank": range(1, len(found) + 1),
        "image_id": samples["image_id"].to_numpy()[found],
        "label": samples["label"].to_numpy()[found],
        "suggested": [labels[number] for number in suggested],
        "p_label": probabilities[found, targets[found]],
        "p_suggested": probabilities[found, suggested],
    })  # fmt: skip


def log(comparison: Comparison, params: Params, prepared: Prepared) -> None:
    """Log a comparison with the active run: metrics, leakage.json, a figure, all predictions, the suspect labels."""
    scores, repetitions = comparison.scores, comparison.repetitions
    for name, found in scores.items():
        values = {metric: score.value for metric, score in found.items()}
        for metric, score in found.items():
            values |= {f"{metric}_low": score.low, f"{metric}_high": score.high}
            if params.leakage.seeds > 1:
                values[f"{metric}_sd"] = deviation(repetitions[name][metric])
        runs.log_metrics(values, name)
    title = (
        f"recipe {params.leakage.recipe}: {len(comparison.samples)} images, {params.split.folds} folds, "
        f"fold seeds 0 to {params.leakage.seeds - 1} (circles), their mean and its 95 % interval"
    )
    shown = {protocol: scores[protocol] for protocol in PROTOCOLS}
    runs.log_figure(figures.comparison(shown, repetitions, scores[DIFFERENCE], title), "leakage")
    for protocol in PROTOCOLS:
        tables = [
            models.predictions(comparison.samples, comparison.labels, found).assign(seed=seed, fold=fold)
            for seed, (fold, found) in enumerate(
                zip(comparison.folds[protocol], comparison.probabilities[protocol], strict=True)
            )
        ]
        runs.log_table(pd.concat(tables), f"out_of_fold_{protocol}")
    runs.log_table(comparison.suspects, "suspect_labels")
    runs.log_report({
        **flatten(params, ("leakage",)),
        "images": len(comparison.samples), "groups": comparison.samples["group"].nunique(),
        "folds": params.split.folds, "seeds": list(range(params.leakage.seeds)),
        "data_digest": prepared.data_digest, "split_digest": prepared.split_digest,
        "scores": {name: {metric: {**score._asdict(), "by_seed": repetitions[name][metric]}
                          for metric, score in found.items()} for name, found in scores.items()},
        "suspect_labels": len(comparison.suspects),
    }, "leakage")  # fmt: skip


def deviation(values: list[float]) -> float:
    """Standard deviation of a few repetitions."""
    return float(np.std(values, ddof=1))


def _probe(params: Params, prepared: Prepared, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> Recipe:
    settings = params.leakage
    device = fitting.accelerator(params.train).device
    try:
        network = backbone.create(settings.backbone, settings.weights, len(params.data.classes), 1, 0.0)
        backbone.require_size(network, prepared.preparation.size)
    except InputError as error:  # it speaks of the section model
        sentence = str(error).replace("model.name", "leakage.backbone").replace("model.weights", "leakage.weights")
        raise type(error)(sentence) from None
    features = probe.features(network.to(device), prepared.images[rows])
    return lambda protocol, seed, folds: probe.out_of_fold(features, targets, folds)


def _finetune(params: Params, prepared: Prepared, rows: NDArray[np.int64], targets: NDArray[np.int64]) -> Recipe:
    count = params.split.folds
    total, done = len(PROTOCOLS) * params.leakage.seeds * count, 0

    def recipe(protocol: str, seed: int, folds: NDArray[np.int64]) -> Probabilities:
        nonlocal done
        samples = prepared.samples.copy()
        samples.loc[samples.index[rows], "fold"] = folds
        # Other folds are another split: the digest keeps these scores apart from those on the split of DVC.
        changed = prepared._replace(samples=samples, split_digest=splitting.digest(samples))
        probabilities = np.full((len(rows), len(params.data.classes)), np.nan)
        for fold in range(count):
            chosen = override(
                params, {"train.folds": fold, "train.ensemble": False, "train.seed": params.train.seed + seed}
            )
            tags = {**provenance.tags(changed), "seed": str(chosen.train.seed), "protocol": protocol}
            name, values = f"{protocol}-seed{seed}-fold{fold}", flatten(chosen, ("model", "augment", "train"))
            with runs.child("leakage-fold", name, values, tags):
                trained = training.train(chosen, changed, name, fold)
                scored = classification.log(trained, changed)
            probabilities[np.searchsorted(rows, trained.rows)] = trained.chosen.probabilities
            done += 1
            print(
                f"{done}/{total} {name}: accuracy {scored['accuracy']:.3f} (epoch {trained.chosen.epoch})", flush=True
            )
        return probabilities

    return recipe


def _scores(
    targets: NDArray[np.int64], found: dict[str, list[Probabilities]], groups: NDArray[np.int64], resamples: int
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, list[float]]]]:
    drawn = intervals.bootstrap(
        {f"{protocol}/{metric}": intervals.mean_of(metric, targets, found[protocol])
         for protocol in PROTOCOLS for metric in METRICS},
        groups, resamples, BOOTSTRAP_SEED,
    )  # fmt: skip
    for metric in METRICS:  # the same resamples: paired
        drawn[f"{DIFFERENCE}/{metric}"] = drawn[f"{RANDOM}/{metric}"] - drawn[f"{GROUPED}/{metric}"]
    single = {
        protocol: {metric: [metrics.METRICS[metric].of(targets, seed) for seed in found[protocol]]
                   for metric in METRICS} for protocol in PROTOCOLS
    }  # fmt: skip
    single[DIFFERENCE] = {
        metric: [a - b for a, b in zip(single[RANDOM][metric], single[GROUPED][metric], strict=True)]
        for metric in METRICS
    }
    scores = {
        name: {metric: intervals.interval(drawn[f"{name}/{metric}"]) for metric in METRICS}
        for name in (*PROTOCOLS, DIFFERENCE)
    }
    return scores, single
