"""A linear probe: frozen features of a backbone, and a logistic regression on them, scored out of fold."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ultrasound.errors import InputError
from ultrasound.images.loading import Batches
from ultrasound.images.preparation import Pixels
from ultrasound.learning.backbone import Network

BATCH = 16  # on CPUs larger batches fall out of the cache and are slower
# scikit-learn's C. Its default of 1 gives far too certain probabilities, as there are more features than images.
REGULARISATION = 0.01
ITERATIONS = 1000


def features(network: Network, images: Pixels, batch: int = BATCH) -> NDArray[np.float32]:
    """Features of prepared images from the backbone of `network`, its head left out; shows a progress bar.

    The network is set to evaluation and works on its own device, in single precision.

    Args:
        images: (n, size, size) uint8.
        batch: images at once.

    Returns:
        (n, features).
    """
    device = next(network.parameters()).device
    network.eval().to(memory_format=torch.channels_last)
    batches = Batches(images, np.zeros(len(images), dtype=np.int64), batch, device)
    found = []
    with torch.inference_mode():
        for part, _ in tqdm(batches.in_order(), "features", math.ceil(len(images) / batch), disable=None):
            found.append(network.features(part.float() / 255).float().cpu())
    array: NDArray[np.float32] = torch.cat(found).numpy()
    return array


def out_of_fold(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    folds: NDArray[np.int64],
    regularisation: float = REGULARISATION,
) -> NDArray[np.float64]:
    """Class probabilities of every image from a logistic regression that was fitted on the other folds.

    Features are standardised with mean and deviation of the images that are fitted, never of those that are scored.
    The fit has one solution, so there is no seed.

    Args:
        features: (n, features).
        targets: (n,) class numbers 0, 1, 2 ...
        folds: (n,) fold of each image.
        regularisation: inverse strength of the L2 penalty, scikit-learn's `C`.

    Returns:
        (n, classes), rows sum to 1.

    Raises:
        InputError: all images of a class stand in one fold, so that nothing can be learnt of it for that fold.
    """
    probabilities = np.full((len(targets), int(targets.max()) + 1), np.nan)
    for fold in np.unique(folds):
        held_out = folds == fold
        if missing := set(targets.tolist()) - set(targets[~held_out].tolist()):
            raise InputError(f"all images of class number {min(missing)} stand in fold {fold}: take other folds")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=ITERATIONS))
        with threadpool_limits(1):  # matrices this small are 30 times slower where threads wait for each other
            model.fit(features[~held_out].astype(np.float64), targets[~held_out])
            probabilities[held_out] = model.predict_proba(features[held_out].astype(np.float64))
    return probabilities
