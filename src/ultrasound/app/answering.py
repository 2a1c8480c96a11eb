"""What the page knows of an image: the file, what the model says of it, and the outline of the lesion in it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os

import streamlit as st
from PIL import Image

from ultrasound.app import OUTLINES, pictures, words
from ultrasound.app.asking import Answer, ImageError, Outline, Server, ServerError
from ultrasound.errors import InputError
from ultrasound.inference import scan
from ultrasound.serving import TOKEN


@dataclasses.dataclass(frozen=True)
class Item:
    """An image that was chosen.

    Attributes:
        name: of its file, or what a phantom is called.
        content: the bytes of the file.
        is_synthetic: whether it is a phantom.
    """

    name: str
    content: bytes
    is_synthetic: bool = False

    @property
    def digest(self) -> str:
        """What its answer is remembered by."""
        return hashlib.sha256(self.content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Answered:
    """The picture that the model saw, what it said of it, and when; and the lesion's outline, or why there is none."""

    picture: Image.Image
    answer: Answer
    time: datetime.datetime
    outline: Outline | None = None
    no_outline: str = ""


class Segmenter:
    """The server that outlines lesions, if there is one. After a failure it is left alone until the next run."""

    def __init__(self) -> None:
        address = os.environ.get(OUTLINES)
        self.server = Server(address, os.environ.get(TOKEN) or None) if address else None
        self.version: str | None = None  # that answers now, once it was asked for; "" if the server does not say
        self.trouble = ""

    def outlined(self, found: Answered, item: Item) -> Answered:
        """An answer with the outline of the version that answers now, or with why there is none."""
        if self.server is None:
            return found
        try:
            if not self.trouble:
                return self._outlined(self.server, found, item)
        except ServerError:  # the class is answered all the same
            self.trouble = words.SEGMENTER_DOWN
        except InputError as error:
            return dataclasses.replace(found, outline=None, no_outline=words.plain(str(error)))
        return dataclasses.replace(found, outline=None, no_outline=self.trouble)

    def _outlined(self, server: Server, found: Answered, item: Item) -> Answered:
        if self.version is None:
            self.version = server.identity().model_version
        if found.outline is not None and self.version in ("", found.outline.model_version):
            return found
        with st.spinner(words.ASKING):
            outline = server.outline(item.content)
        pictures.outlined(found.picture, outline.mask)
        return dataclasses.replace(found, outline=outline, no_outline="")


def ask(server: Server, item: Item) -> Answered:
    """Open the image as the server does, and ask.

    Raises:
        ImageError: it is no image that can be answered.
        ServerError: the server answers nobody.
    """
    try:
        picture = pictures.bare(scan.open_scan(item.content, "Image 1"))
    except InputError as error:
        raise ImageError(words.refused(str(error))) from None
    with st.spinner(words.ASKING):
        answer = server.answer(item.content)
    if answer.heat_map:
        try:
            pictures.overlay(picture, answer.heat_map, 1)
        except InputError as error:
            raise ImageError(str(error)) from None
    return Answered(picture, answer, datetime.datetime.now().astimezone())
