"""Every sentence of the page and of its sheet."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ultrasound import NOTICE
from ultrasound.serving import TOKEN

if TYPE_CHECKING:
    from ultrasound.app.asking import Answer, Outline

MAX_IMAGES = 16
TITLE = "Breast ultrasound: ask the model"
INTRODUCTION = "Choose B-mode images, and read what the served model says of each, how sure it is, and where it looked."
PRIVACY = (
    "Images go to the model's server and nowhere else. They are held in memory only, until you remove them or close "
    "the page (then for two minutes more)."
)
IMAGES, ANSWERS = "Images", "Answers"
WHICH = "What to ask about"
OWN, PHANTOM = "Your own images", "A synthetic phantom"
UPLOAD = f"PNG, JPEG or DICOM, up to 8 MB each, at most {MAX_IMAGES}"
PHANTOM_CLASS, PHANTOM_NUMBER = "What it shows", "Number, 1 to 999"
PHANTOM_NOTE = (
    "Synthetic: this picture was calculated and shows no person. A model that has learnt from real scans may well "
    "decline to answer it."
)
TOO_MANY = f"Only the first {MAX_IMAGES} images were asked about. Remove some to ask about the others."
RETRY = "Try again"
OUTLINE = "Outline of the lesion"
SEGMENTER_DOWN = (
    "The segmenter's server, `app.outlines`, does not answer as it should. Look whether it runs; the next change on "
    "this page asks it again."
)
NOTHING_YET = "No image chosen yet."
NOT_ASKED = "Not answered yet."
ASKING = "Asking the model ..."
NUMBERS = "Show the numbers all the same"
NUMBERS_WARNING = (
    "The model abstained: these numbers are no answer. They only show what it calculated before it was held back."
)
CALIBRATED = "Calibrated probabilities"
OPACITY = "Opacity of the heat map, in percent"
COLD, HOT = "little evidence", "most evidence"
NO_HEAT = "This model has no heat map."
SHEET = "Download as a sheet"
SHEET_NAME = "Put the file name on the sheet"
SHEET_HELP = (
    "The name of a file may tell who the patient is, so it is left out unless you tick this. What is written in the "
    "picture itself stays in it."
)

SHEET_TITLE = "Breast ultrasound: what a model said"
NO_PHYSICIAN = "The answer of a model does not replace a physician's."
FOOTER = f"{NOTICE} {NO_PHYSICIAN}"
OPENING = "its run in MLflow"
RUN_ID = re.compile(r"[0-9a-f]{32}")
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&])")


def plain(text: str) -> str:
    """Text of others, a file name or a server's sentence, as Markdown that shows it letter by letter."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def listed(names: Sequence[str], last: str = "and") -> str:
    """`benign, malignant and normal`."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def percent(probability: float) -> str:
    """A probability as `83.0 %`. Nothing is called certain or impossible."""
    if probability < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if probability >= 0.9995 else f"{100 * probability:.1f} %"


def heading(label: str, probability: float) -> str:
    """The answer itself."""
    return f"Most probable class: {label}, {percent(probability)}"


def operating_point(positive: str, is_flagged: bool, label: str, probability: float) -> str:
    """What the operating point makes of the probability of its class.

    Args:
        positive: that class.
        is_flagged: whether its probability reaches the operating point.
        label: the most probable class.
        probability: of `positive`.
    """
    if not is_flagged:
        though = f", although {positive} is the most probable class" if label == positive else ""
        return (
            f"At the operating point this does not count as {positive}{though}: its probability, "
            f"{percent(probability)}, stays below the limit that was set before the model was tested."
        )
    though = f", although {label} is more probable" if label != positive else ""
    return (
        f"At the operating point this counts as {positive}{though}: its probability, {percent(probability)}, reaches "
        f"the limit, which was set so that few {positive} images are missed."
    )


def outline(found: Outline) -> str:
    """What the segmenter says, in a sentence or two."""
    if found.abstain:
        return f"The segmenter draws no outline. {found.abstain_reason} ({found.model_version})"
    if not found.lesions:
        return f"No lesion was outlined by {found.model_version}. That does not mean that there is none."
    many = "" if found.lesions == 1 else f"{found.lesions} regions, together "
    largest = "it" if found.lesions == 1 else "the largest"
    said = f"{many}{percent(found.area_share)} of the scan"
    if found.taller_than_wide is not None and found.circularity is not None:
        said += (
            f"; {largest} is {found.taller_than_wide:.2f} times as tall as wide, its circularity is "
            f"{found.circularity:.2f} (1 is a disc)"
        )
    return f"Outlined by {found.model_version}: {said}."


def outlined_picture(number: int, is_synthetic: bool) -> str:
    """What a picture with an outline shows, for who cannot see it."""
    return f"{picture(number, is_synthetic)}, with the outline of what the segmenter takes for a lesion"


def no_outline(reason: str) -> str:
    """Why there is no outline beside the answer."""
    return f"The lesion is not outlined. {reason}"


def prediction_set(chosen: Sequence[str], classes: Collection[str]) -> str:
    """What the prediction set means.

    Args:
        chosen: the classes that it holds.
        classes: all that there are.
    """
    if not chosen:
        return "No class fits: none is probable enough to stand in the prediction set."
    if len(chosen) == 1:
        return f"Only {chosen[0]} stays possible: the prediction set rules the other classes out."
    if len(chosen) == len(classes):
        return f"The model cannot tell the classes apart here: {listed(chosen)} all stay possible."
    return (
        f"The model cannot tell {listed(chosen, 'from')} here: {'both' if len(chosen) == 2 else 'all'} stay possible."
    )


def disagreement(chosen: Sequence[str], positive: str) -> str:
    """What holds where the operating point counts an image as its class, and the prediction set leaves that out."""
    return (
        f"The prediction set holds {listed(chosen)} without {positive}; it is less cautious about {positive} than the "
        f"operating point, so {positive} is not ruled out here."
    )


def abstention(reason: str, chosen: Sequence[str], classes: Collection[str]) -> str:
    """Why there is no answer, and what the prediction set means. A set of one class would be an answer: not shown."""
    said = f"The model gives no answer. {reason}".strip()
    if len(chosen) == 1:
        return said
    if not chosen:
        return f"{said} The prediction set is empty."
    if all(name in reason for name in chosen):  # the reason has said the rest
        return f"{said} {'Both' if len(chosen) == 2 else 'All'} stay possible."
    return f"{said} {prediction_set(chosen, classes)}"


def sentences(answer: Answer) -> list[str]:
    """What an answer means, in sentences; of one that the model abstained from, only that and why."""
    chosen = answer.prediction_set
    if answer.abstain:
        return [abstention(answer.abstain_reason, chosen, answer.probabilities)]
    missed = [positive for positive, is_flagged in answer.flags.items() if is_flagged and positive not in chosen]
    if missed:
        return [*flags(answer), *(disagreement(chosen, positive) for positive in missed)]
    return [*flags(answer), prediction_set(chosen, answer.probabilities)]


def flags(answer: Answer) -> list[str]:
    """What the operating point makes of an answer."""
    return [
        operating_point(positive, is_flagged, answer.label, answer.probabilities[positive])
        for positive, is_flagged in answer.flags.items()
    ]


def picture(number: int, is_synthetic: bool, heat: str = "") -> str:
    """What a screen reader says of a picture; `heat` is the class whose heat map covers it."""
    shown = "synthetic phantom" if is_synthetic else "ultrasound image"
    covered = f", covered by the heat map for {heat}" if heat else ""
    return f"Image {number}: {shown}{covered}"


def cold(label: str) -> str:
    """Instead of a heat map in which nothing is hot."""
    return f"The heat map (Grad-CAM) is empty: by it, no part of the image speaks for {label}."


def heat_map(label: str) -> str:
    """What the colours mean."""
    return (
        f"Grad-CAM: the brighter the colour, from purple to yellow, the more of the evidence for {label} came from "
        "there. It is not the outline of the lesion."
    )


def version(model_version: str, data_version: str) -> str:
    """Who answered."""
    return f"Model {model_version}, trained on data {data_version}"


def run_address(tracking: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page in the MLflow UI, "" if no run is known.

    Args:
        tracking: MLFLOW_TRACKING_URI. If that is no address of a server, the UI is where `make ui` starts it.
        experiment_id: number of its experiment.
        run_id: 32 hexadecimal digits; anything else is no run.
    """
    if not RUN_ID.fullmatch(run_id) or not experiment_id.isdigit():
        return ""
    parts = urlsplit(tracking)
    base = "http://127.0.0.1:5000"
    if parts.scheme in ("http", "https"):  # without a user's name and password
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


def refused(sentence: str) -> str:
    """The server's sentence about the only image of a request."""
    said = sentence.removeprefix("Image 1 ")
    said = f"This file {said}" if said != sentence else sentence or "The server does not take this file."
    return f"{said.removesuffix('.')}. Choose another file; the other images are not affected."


def missing(reason: str) -> str:
    """There is no model that a server could serve, or nobody who knows it."""
    return f"No model can be asked: {plain(reason)}. Then start the page again."


def down(url: str) -> str:
    """Nobody listens there."""
    return (
        f"No server answers at `{url}`. Start it with `python -m ultrasound serve` (or start the page with "
        f"`--with-server`), or correct `app.url`; then press {RETRY}."
    )


def too_slow(url: str, seconds: float) -> str:
    """Connected, but no answer."""
    return f"The server at `{url}` did not answer within {seconds:.0f} seconds. Look at its log, then press {RETRY}."


def untrusted(url: str) -> str:
    """TLS failed."""
    return (
        f"The certificate of `{url}` is not trusted, or nobody speaks TLS there. Correct `app.url` or the certificate."
    )


def strange(url: str) -> str:
    """It answers, but is not ours."""
    return f"What answers at `{url}` is not a server of this model. Correct `app.url`, then start the page again."


def unanswered(url: str, status: int, sentence: str) -> str:
    """The server answers with an error that concerns every image."""
    told: Mapping[int, str] = {
        401: f"The server at `{url}` asks for a token. Stop the page, set the environment variable `{TOKEN}` "
        "to the server's token, and start the page again.",
        408: f"The server at `{url}` did not get the image in time. Press {RETRY}.",
        429: f"The server at `{url}` is busy with other requests. Wait some seconds, then press {RETRY}.",
        503: f"The server at `{url}` has no model ready: it is starting, stopping, or changing its version. "
        f"Wait some seconds, then press {RETRY}; if that does not help, look at its log.",
    }
    told = {**told, 403: told[401]}
    said = f" It says: {plain(sentence)}" if sentence else ""
    return (
        told.get(status)
        or f"The server at `{url}` failed with HTTP {status}.{said} Look at its log, then press {RETRY}."
    )
