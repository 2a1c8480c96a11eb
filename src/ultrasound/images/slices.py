"""Groups of images in which a model may do better or worse: by what is drawn on them, by size, by lesion, by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ultrasound.images.annotations import flags as annotation_flags

MEGAPIXELS = 0.3  # BUSI's images have 0.27 at the median; those of other exports 0.4 and more
LESION_SHARES = (0.04, 0.12)  # of the image's area: about a third of BUSI's lesions on each side and between
FEW = 30  # images, below which a slice is marked as small


class Slice(NamedTuple):
    """Some of the images.

    Attributes:
        by: what the images are told apart by.
        name: which of them these are.
        rows: (n,) bool.
    """

    by: str
    name: str
    rows: NDArray[np.bool_]

    @property
    def is_small(self) -> bool:
        """Whether scores of so few images say little."""
        return int(self.rows.sum()) < FEW


def slices(catalog: pd.DataFrame, groups: NDArray[np.int64]) -> list[Slice]:
    """Part the images in several ways; parts without any image are left out.

    Args:
        catalog: a row an image, with its annotation columns.
        groups: (n,) group of near-duplicates of each image, of all images that there are.
    """
    flags = annotation_flags(catalog)
    sizes = pd.Series(groups).map(pd.Series(groups).value_counts()).to_numpy()
    megapixels = catalog["width"] * catalog["height"] / 1e6
    share, low, high = catalog["lesion_share"].where(catalog["lesions"] > 0), *LESION_SHARES
    parts = {
        "calipers or text": {"with": flags["calipers"] | flags["text"], "without": ~flags["calipers"] & ~flags["text"]},
        "colour": {"coloured": flags["coloured"], "grey": ~flags["coloured"]},
        "near-duplicates": {"has some": sizes > 1, "single": sizes == 1},
        "lesion": {f"under {low:.0%} of the image": share < low, f"{low:.0%} to {high:.0%}": share.between(low, high),
                   f"over {high:.0%}": share > high},
        "image size": {f"under {MEGAPIXELS} megapixels": megapixels < MEGAPIXELS, "larger": megapixels >= MEGAPIXELS},
        "class": {label: catalog["label"] == label for label in dict.fromkeys(catalog["label"])},
    }  # fmt: skip
    found = [
        Slice(by, name, np.asarray(rows, dtype=np.bool_)) for by, each in parts.items() for name, rows in each.items()
    ]
    return [part for part in found if part.rows.any()]
