"""What is drawn on an image or missing from it: colour, calipers, lettering, black borders; what its masks outline.

These are columns of the catalogue, by which scores are reported.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from ultrasound.images import overlay
from ultrasound.images.catalog import SEPARATOR
from ultrasound.images.preparation import BLACK, Pixels, content_box, lesion, open_image

COLUMNS = ["coloured", "doppler", "calipers", "text", "border", "lesions", "lesion_share"]

COLOURED = 0.0001  # share of coloured pixels; BUSI's 16 coloured images have at least 0.0002, all others 0
BLACK_BORDER = 0.005  # share of the area; less is no more than a line or two of pixels

TINT = 5  # levels between the channels of a coloured pixel; compression tints grey by less
FLOW = 60  # levels of red or of blue above green: yellow is for lettering, red and blue for flow
SPECK = 0.0002  # share of the area; BUSI's smallest outlined lesion has 0.002, stray pixels of masks have 0.00003

Mask = NDArray[np.bool_]


def annotate(catalog: pd.DataFrame) -> pd.DataFrame:
    """Return the catalogue with `COLUMNS`, with one process a core and a progress bar.

    * coloured: share of the pixels that are not grey.
    * doppler: 1 where a colour box or a patch of flow is drawn, else 0.
    * calipers, text: 0..1, how sure that measuring crosses are drawn, that lettering is burnt in. The numbers at
      crosses are calipers, not text; the scanner's own mark in the upper corners is neither.
    * border: share of the area outside of the scan: black borders, rulers, the corners above a sector scan.
    * lesions: outlined areas; of two where one lies in the other, one. Specks are ignored.
    * lesion_share: share of the area that the masks mark together.

    Shares and certainties are rounded to 4 digits, so that the table is the same on every machine.

    Raises:
        InputError: a file is missing or damaged.
    """
    jobs = catalog[["image", "masks"]].to_dict("records")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(_annotate_one, jobs, chunksize=8), "annotate", len(jobs), leave=False, disable=None))
    return catalog.assign(**pd.DataFrame(found, columns=COLUMNS, index=catalog.index))


def flags(catalog: pd.DataFrame) -> pd.DataFrame:
    """The annotations as yes or no, one bool column a slice, in the order and with the index of the catalogue."""
    raised = {
        "coloured": catalog["coloured"] >= COLOURED,
        "doppler": catalog["doppler"] == 1,
        "calipers": catalog["calipers"] >= overlay.SURE,
        "text": catalog["text"] >= overlay.SURE,
        "black border": catalog["border"] >= BLACK_BORDER,
        "several lesions": catalog["lesions"] > 1,
    }
    return pd.DataFrame(raised)


def _annotate_one(job: dict[str, str]) -> tuple[float | int, ...]:
    image = open_image(Path(job["image"]), job["image"])
    masks = [lesion(open_image(Path(file), file)) for file in job["masks"].split(SEPARATOR) if file]
    grey = np.asarray(image.convert("L"))
    coloured, doppler = _colour(np.asarray(image.convert("RGB")))
    calipers, text = overlay.sureness(grey)
    merged = np.logical_or.reduce([np.zeros(grey.shape, bool), *masks])
    shares = (coloured, calipers, text, _border(grey), merged.mean())
    coloured, calipers, text, border, lesion_share = (round(float(share), 4) for share in shares)
    return coloured, doppler, calipers, text, border, _lesions(masks), lesion_share


def _colour(rgb: Pixels) -> tuple[float, int]:
    """Share of coloured pixels, and whether their lines are a colour box's or red or blue of flow fills a patch."""
    red, green, blue = cv2.split(rgb)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    tinted = (spread > TINT).astype(np.uint8)
    if not tinted.any():
        return 0.0, 0
    flow = (cv2.subtract(cv2.max(red, blue), green) > FLOW).astype(np.uint8)
    down, across = (max(side // 6, 20) for side in tinted.shape)
    box = overlay.darkest(tinted, (1, across)).any() and overlay.darkest(tinted, (down, 1)).any()
    return float(tinted.mean()), int(box or overlay.darkest(flow, (4, 4)).any())


def _border(grey: Pixels) -> float:
    """Share of the area outside of the content box, and in it of the black corners above a sector scan."""
    left, top, right, bottom = content_box(grey)
    scan = grey[top:bottom, left:right]
    black = np.asarray(cv2.erode((scan <= BLACK).astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
    left_half, right_half = np.split(black, [black.shape[1] // 2], axis=1)
    return 1 - (scan.size - _corner(left_half) - _corner(right_half[:, ::-1])) / grey.size


def _corner(black: Pixels) -> int:
    """Pixels of the black corner at the upper left. It gets narrower with depth; where wider, it has met a shadow."""
    if not black.any():
        return 0
    _, labels = cv2.connectedComponents(np.ascontiguousarray(black), connectivity=4)
    corner = np.isin(labels, np.setdiff1d(np.intersect1d(labels[:1], labels[:, :1]), [0]))
    reach = (corner * np.arange(1, black.shape[1] + 1)).max(axis=1)  # of each row, whatever letters stand in it
    reach[reach > reach[: len(reach) // 8 + 1].max()] = 0
    return int(np.minimum.accumulate(reach).sum())


def _lesions(masks: list[Mask]) -> int:
    """Number of areas that the masks outline, larger than a speck and not mostly within one counted before."""
    areas: list[Mask] = []
    for mask in masks:
        _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        sizes = np.bincount(labels.ravel())
        areas += [labels == index for index in np.flatnonzero(sizes >= SPECK * mask.size) if index > 0]
    counted, seen = 0, np.zeros(masks[0].shape if masks else 0, bool)
    for area in sorted(areas, key=lambda area: -int(area.sum())):
        counted += bool((area & ~seen).sum() * 2 > area.sum())
        seen |= area
    return counted
