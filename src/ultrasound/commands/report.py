"""Write build/data-report.html, the data report: one page that needs no server.

Run by `dvc repro`, or alone: `python -m ultrasound report`. Open the page in a browser.
"""

from ultrasound.commands import CATALOG, DUPLICATES, REPORT, SPLITS
from ultrasound.images import catalog, counts, report, splitting
from ultrasound.sections import Params

SECTIONS = ()


def run(params: Params) -> None:
    """Read catalogue, split and pairs, write the page."""
    table, splits, pairs = catalog.read(CATALOG), splitting.read(SPLITS), counts.read_pairs(DUPLICATES)
    page = report.render(table, splits, pairs)
    REPORT.write_text(page, encoding="utf-8")
    print(f"{REPORT}: {len(table)} images, {len(pairs)} pairs, {len(page) / 1e6:.1f} MB")
