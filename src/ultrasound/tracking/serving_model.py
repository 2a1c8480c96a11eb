"""The served model, as MLflow runs it from code: base64 images in, class probabilities out.

`mlflow models serve` executes this file; the classifier lies in the model's artifacts, the package in its code.
Whatever a client sends wrong is answered with HTTP 400 and one sentence.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ultrasound import NOTICE
from ultrasound.errors import InputError
from ultrasound.images.preparation import Pixels
from ultrasound.learning import classifier

MAX_ROWS = 16
MAX_BYTES = 8_000_000  # of one decoded file


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


class ServedClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The classifier behind MLflow's `predict`."""

    def load_context(self, context: Any) -> None:
        """Load the classifier and read which registered version this is."""
        folder = Path(context.artifacts["classifier"])
        self.classifier = classifier.load(folder)
        self.version = _version(folder.parents[1])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify 1 to 16 images.

        Args:
            model_input: column `image`, base64 of PNG or JPEG files.

        Returns:
            A row an image: label, p_LABEL for every class, model_version, notice.

        Raises:
            BadRequest: a row is no image that could be classified.
        """
        rows = model_input["image"].tolist()
        if not 1 <= len(rows) <= MAX_ROWS:
            raise BadRequest(f"The request must hold 1 to {MAX_ROWS} images, found {len(rows)}.")
        images = np.stack([self._decode(row, number) for number, row in enumerate(rows, 1)])
        probabilities = self.classifier.probabilities(images)
        labels = self.classifier.labels
        answer = pd.DataFrame({"label": [labels[number] for number in probabilities.argmax(1)]})
        for number, label in enumerate(labels):
            answer[f"p_{label}"] = probabilities[:, number]
        return answer.assign(model_version=self.version, notice=NOTICE)

    def _decode(self, row: object, number: int) -> Pixels:
        if not isinstance(row, str) or not row:
            raise BadRequest(f"Image {number} must be a base64 string of a PNG or JPEG file.")
        if len(row) > MAX_BYTES * 4 // 3 + 4:
            raise BadRequest(f"Image {number} is larger than {MAX_BYTES // 1_000_000} MB.")
        try:
            content = base64.b64decode(row, validate=True)
        except (binascii.Error, ValueError):
            raise BadRequest(f"Image {number} is not valid base64.") from None
        try:
            return self.classifier.preparation.image(content, f"Image {number}")
        except InputError as error:
            raise BadRequest(f"{error}.") from None


def _version(model_folder: Path) -> str:
    # MLflow writes this file when it resolves a registered model's address.
    file = model_folder / "registered_model_meta"
    meta = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return f"{meta['model_name']}/{meta['model_version']}" if meta.get("model_version") else "unregistered"


mlflow.models.set_model(ServedClassifier())
