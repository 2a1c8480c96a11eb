"""The served model, as MLflow runs it from code: base64 images in, class probabilities or outlines out, without torch.

`mlflow models serve` executes this file; the classifier or the segmenter lies in the model's artifacts, the package in
its code. A model
whose files are not those that were saved is not loaded. Whatever a client sends wrong is answered with HTTP 400 and one
sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ultrasound.errors import InputError
from ultrasound.inference import manifest, outliner, predictor, scan
from ultrasound.inference.outliner import Outliner
from ultrasound.inference.predictor import MAX_IMAGES, Decoded, Predictor

DECODED = 2  # images at once, of all requests: each may take 100 MB for a moment
TOGETHER = 2  # images of a request that are answered at once: more is hardly faster, and who has left is noticed later


class LeftError(Exception):
    """Nobody waits for the answer any more."""


class BadRequest(MlflowException):  # type: ignore[misc]
    """HTTP 400. MLflow's server would put the request's content in front of the message; this one keeps its own."""

    def __init__(self, message: str) -> None:
        self._sentence = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence that the client gets."""
        return self._sentence

    @message.setter
    def message(self, value: str) -> None:
        pass


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The classifier, or the segmenter, behind MLflow's `predict`."""

    def load_context(self, context: Any) -> None:
        """Check every file of the model, load it and read which registered version this is."""
        (folder,) = map(Path, context.artifacts.values())
        model = folder.parents[1]
        manifest.check(model)
        load = outliner.load if folder.name == "segmenter" else predictor.load
        self.predictor: Predictor | Outliner = load(folder, _version(model))
        self.threads = ThreadPoolExecutor(DECODED)  # for requests of several images
        self.decoding = Semaphore(DECODED)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classify 1 to 16 images, or outline the lesions in them.

        Args:
            context: MLflow's, or of `ultrasound serve` a function that tells whether the client has left.
            model_input: column `image`, base64 of PNG, JPEG or DICOM files; `ultrasound serve` hands in a dict of a
                list, which spares it making a frame.
            params: of the classifier, `explain`: with heat maps.

        Returns:
            A row an image, see `answers` in `ultrasound.inference.predictor` and `outliner`. As records; a frame would
            take 2 ms to be made and taken apart again; `pandas.DataFrame` takes them.

        Raises:
            BadRequest: a row is no image that could be classified.
            LeftError: the client has left.
        """
        has_left = context if callable(context) else _stays
        rows = list(model_input["image"])
        if not 1 <= len(rows) <= MAX_IMAGES:
            raise BadRequest(f"The request must hold 1 to {MAX_IMAGES} images, found {len(rows)}.")
        names = [f"Image {number}" for number in range(1, len(rows) + 1)]
        each = map if len(rows) == 1 else self.threads.map
        try:
            decoded = list(each(functools.partial(self._decode, has_left=has_left), rows, names))
        except InputError as error:
            raise BadRequest(f"{error}.") from None
        answers: list[dict[str, Any]] = []
        for start in range(0, len(decoded), TOGETHER):
            if has_left():
                raise LeftError
            answers += self.predictor.answers(decoded[start : start + TOGETHER], **(params or {}))
        return answers

    def _decode(self, row: object, name: str, has_left: Callable[[], bool]) -> Decoded:
        content = scan.decode(row, name)
        with self.decoding:
            if has_left():
                raise LeftError
            return self.predictor.decoded(content, name)


def _stays() -> bool:
    return False


def _version(model_folder: Path) -> str:
    # MLflow writes this file when it resolves a registered model's address.
    file = model_folder / "registered_model_meta"
    meta = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return f"{meta['model_name']}/{meta['model_version']}" if meta.get("model_version") else "unregistered"


mlflow.models.set_model(ServedModel())
