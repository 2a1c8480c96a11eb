"""Draw the visual words of the near-duplicate search anew: src/ultrasound/images/words.npz.

Other words propose other pairs, and with other pairs the folds may be divided anew: a score before and one after are
then of two splits. Hence they are kept, and no command of the project calls this.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from ultrasound.images import duplicates, keypoints
from ultrasound.images.keypoints import Grey
from ultrasound.images.sources import phantom

PHANTOMS, COUNT = 36, 4096


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    words = drawn()
    np.savez_compressed(keypoints.WORDS, words=words)
    print(f"{keypoints.WORDS}: {len(words)} words of {PHANTOMS} phantoms")


def drawn() -> Grey:
    """SIFT descriptors of keypoints of phantoms: (4096, 128)."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=duplicates.compute_alike) as pool:
        found = np.concatenate([*pool.map(_descriptors, range(PHANTOMS))])
    return np.asarray(found[np.random.default_rng(0).permutation(len(found))[:COUNT]])


def _descriptors(number: int) -> Grey:
    label, index = phantom.CLASSES[number % len(phantom.CLASSES)], number // len(phantom.CLASSES) + 1
    grey = np.asarray(phantom.phantom(label, index, 0)[0])
    image, clean = keypoints.reduced(grey, np.zeros(grey.shape, bool))
    return keypoints.described(image, clean)[1]


if __name__ == "__main__":
    main()
