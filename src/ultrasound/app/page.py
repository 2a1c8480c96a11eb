"""The page, run by Streamlit at every change: choose images, ask the served model, show what it says.

What a session holds is in its own state and in nobody else's: images that were removed are dropped with their answers.
"""

from __future__ import annotations

import html
import io
import os
from typing import Any

import streamlit as st
from starlette.formparsers import MultiPartParser

from ultrasound import NOTICE
from ultrasound.app import ADDRESS, MISSING, pictures, sheet, words
from ultrasound.app.answering import Answered, Item, Segmenter, ask
from ultrasound.app.asking import Answer, Identity, ImageError, Server, ServerError
from ultrasound.images.sources import phantom
from ultrasound.serving import TOKEN

LARGEST_MB = 8
MultiPartParser.spool_max_size = 16 * 2**20  # no upload is laid on the disk, as Starlette does above 1 MB
PHANTOM_SEED = 1  # others than the phantoms of a training with the parameters as they come
OPACITY = 50  # percent, at first

STYLE = """<style>
.stMainBlockContainer { max-width: 68rem; padding-top: 2.5rem; }
.stMain .stMainBlockContainer h1 { font-size: 2rem; padding: 0 0 .5rem; }
.stMain .stMainBlockContainer h2 { font-size: 1.45rem; padding: 1rem 0 .4rem; }
.stMain .stMainBlockContainer h3 { font-size: 1.2rem; padding: .75rem 0 .4rem; overflow-wrap: anywhere; }
.stMain .stMainBlockContainer h4 { font-size: 1.25rem; font-weight: 600; margin: 0; padding: 0 0 .6rem; }
.stImage img { border-radius: 4px; background: #000; }
.bars { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.bars caption { text-align: left; padding-bottom: .3rem; }
.bars th { text-align: left; font-weight: 400; padding: .3rem 1rem .3rem 0; white-space: nowrap; width: 1%;
  vertical-align: top; }
.bars td { padding: .3rem 0; }
.bars .first { font-weight: 700; }
.bars .track { height: .55rem; margin-top: .15rem; border-radius: 3px;
  background: color-mix(in srgb, currentColor 16%, transparent); }
.bars .track div { height: 100%; min-width: 2px; border-radius: 3px; background: currentColor; opacity: .55; }
.bars .first .track div { opacity: 1; background: #2f7fc1; }
.legend { max-width: 20rem; }
.legend .colours { height: .7rem; border-radius: 3px; }
.legend .ends { display: flex; justify-content: space-between; font-size: .9rem; }
</style>"""


def main() -> None:
    """Show the page."""
    st.set_page_config(page_title=words.TITLE, page_icon=pictures.icon(), layout="wide")
    st.html(STYLE)
    st.title(words.TITLE, anchor=False)
    st.warning(NOTICE, icon=":material/warning:")
    st.markdown(words.INTRODUCTION)
    items = chosen()
    st.header(words.ANSWERS, anchor=False)
    trouble = st.container()
    server = Server(os.environ[ADDRESS], os.environ.get(TOKEN) or None)
    identity, problem = st.session_state.get("identity", Identity()), ""
    try:
        if reason := os.environ.get(MISSING):
            raise ServerError(words.missing(reason))
        identity = st.session_state["identity"] = server.identity()
    except ServerError as error:
        problem = str(error)
    if not items:
        st.markdown(words.NOTHING_YET)
    segmenter = Segmenter()
    known: dict[tuple[str, str], Answered] = st.session_state.get("answered", {})
    kept: dict[tuple[str, str], Answered] = {}
    for number, item in enumerate(items, 1):
        st.subheader(words.plain(f"Image {number}: {item.name}"), anchor=False)
        try:
            found = known.get((item.digest, identity.model_version)) if identity.model_version else None
            found = found or (None if problem else ask(server, item))
        except ImageError as error:
            st.error(str(error))
            continue
        except ServerError as error:
            problem, found = str(error), None
        if found is None:
            st.markdown(words.NOT_ASKED)
            continue
        kept[item.digest, found.answer.model_version] = found = segmenter.outlined(found, item)
        result(number, item, found, identity)
    st.session_state["answered"] = kept
    if problem:
        with trouble:
            st.error(problem)
            if not os.environ.get(MISSING):
                st.button(words.RETRY, icon=":material/refresh:")
    st.divider()
    st.markdown(words.FOOTER)


def chosen() -> list[Item]:
    """The first part of the page: which images to ask about."""
    st.header(words.IMAGES, anchor=False)
    kind = st.radio(words.WHICH, [words.OWN, words.PHANTOM], horizontal=True)
    if kind == words.PHANTOM:
        left, right = st.columns(2)
        label = left.selectbox(words.PHANTOM_CLASS, phantom.CLASSES)
        number = right.number_input(words.PHANTOM_NUMBER, 1, 999, 1)
        st.markdown(words.PHANTOM_NOTE)
        return [Item(f"synthetic phantom, {label} {number}", drawn(label, int(number)), is_synthetic=True)]
    # Any name is taken: DICOM files often have no ending. The first bytes tell what a file is.
    uploads = st.file_uploader(words.UPLOAD, accept_multiple_files=True, max_upload_size=LARGEST_MB)
    st.markdown(words.PRIVACY)
    if len(uploads) > words.MAX_IMAGES:
        st.warning(words.TOO_MANY)
    return [Item(upload.name, upload.getvalue()) for upload in uploads[: words.MAX_IMAGES]]


@st.cache_data(max_entries=16, show_spinner=False)
def drawn(label: str, number: int) -> bytes:
    """A phantom as a PNG file. Nobody is to be seen on it, so that sessions may share it."""
    buffer = io.BytesIO()
    phantom.phantom(label, number, PHANTOM_SEED)[0].save(buffer, "PNG")
    return buffer.getvalue()


@st.fragment
def result(number: int, item: Item, found: Answered, identity: Identity) -> None:
    """Picture and answer of one image; its slider runs this function alone."""
    answer, key = found.answer, f"{number}-{item.digest}"
    opacity = OPACITY / 100
    left, right = st.columns(2, gap="large")
    with left:
        if answer.abstain:
            bare(st, number, item, found)
        else:
            opacity = covered(number, item, found, key)
    with right:
        if answer.abstain:
            st.warning(words.plain(words.sentences(answer)[0]), icon=":material/front_hand:")
            with st.expander(words.NUMBERS):
                st.warning(words.NUMBERS_WARNING)
                st.html(bars(answer))
                for sentence in words.flags(answer):
                    st.markdown(words.plain(sentence))
                opacity = covered(number, item, found, key)
        else:
            label = answer.label
            st.html(f"<h4>{html.escape(words.heading(label, answer.probabilities[label]))}</h4>{bars(answer)}")
            for sentence in words.sentences(answer):
                st.markdown(words.plain(sentence))
        origin(answer, identity)
        outlining(number, item, found)
        with_name = st.checkbox(words.SHEET_NAME, key=f"name-{key}", help=words.SHEET_HELP)
        made = sheet.render(
            found.picture, answer, item.digest, opacity, found.time, is_synthetic=item.is_synthetic,
            file_name=item.name if with_name else "", outline=found.outline,
        )  # fmt: skip
        name = f"ultrasound-sheet-{item.digest[:8]}.html"
        st.download_button(
            words.SHEET, made, name, "text/html", key=f"sheet-{key}", on_click="ignore", icon=":material/download:"
        )


def bare(place: Any, number: int, item: Item, found: Answered) -> None:
    """The picture alone, in a place of the page."""
    alt = words.picture(number, item.is_synthetic)
    place.image(pictures.smaller(found.picture), alt=alt, width="stretch", output_format="PNG")


def covered(number: int, item: Item, found: Answered, key: str) -> float:
    """The picture under its heat map, with a slider; its opacity, 0 to 1."""
    answer, place = found.answer, st.container()
    nothing = ""
    if not answer.heat_map:
        nothing = words.NO_HEAT
    elif pictures.is_cold(answer.heat_map):
        nothing = words.cold(answer.label)
    if nothing:
        bare(place, number, item, found)
        st.markdown(words.plain(nothing))
        return 0.0
    opacity = st.slider(words.OPACITY, 0, 100, OPACITY, 5, key=f"opacity-{key}") / 100
    picture = pictures.overlay(found.picture, answer.heat_map, opacity)
    alt = words.picture(number, item.is_synthetic, answer.label)
    place.image(picture, alt=alt, width="stretch", output_format="PNG")
    st.html(
        f'<div class="legend"><div class="colours" style="background: {pictures.gradient()}" aria-hidden="true"></div>'
        f'<div class="ends"><span>{words.COLD}</span><span>{words.HOT}</span></div></div>'
    )
    st.markdown(words.plain(words.heat_map(answer.label)))
    return opacity


def outlining(number: int, item: Item, found: Answered) -> None:
    """The lesion's outline, with its measures, where there is a segmenter."""
    outline = found.outline
    if found.no_outline:
        st.warning(words.no_outline(found.no_outline))
    if outline is None:
        return
    st.html(f"<h4>{words.OUTLINE}</h4>")
    if outline.abstain or not outline.lesions:
        st.markdown(words.plain(words.outline(outline)))
        return
    alt = words.outlined_picture(number, item.is_synthetic)
    st.image(pictures.outlined(found.picture, outline.mask), alt=alt, width="stretch", output_format="PNG")
    st.markdown(words.plain(words.outline(outline)))


def bars(answer: Answer) -> str:
    """The probabilities as a table with a bar in each row, HTML."""
    rows = []
    for name, probability in answer.probabilities.items():
        first = ' class="first"' if name == answer.label and not answer.abstain else ""
        rows.append(
            f'<tr{first}><th scope="row">{html.escape(name)}</th><td>{html.escape(words.percent(probability))}'
            f'<div class="track" aria-hidden="true"><div style="width: {100 * probability:.2f}%"></div></div></td></tr>'
        )
    return f'<table class="bars"><caption>{words.CALIBRATED}</caption><tbody>{"".join(rows)}</tbody></table>'


def origin(answer: Answer, identity: Identity) -> None:
    """Which model answered, with a link to its run if the server that answers now is that model."""
    said = words.plain(words.version(answer.model_version, answer.data_version))
    run = words.run_address(os.environ.get("MLFLOW_TRACKING_URI", ""), identity.experiment_id, identity.run_id)
    is_same = identity.model_version == answer.model_version
    st.markdown(f"{said}; [{words.OPENING}]({run})" if run and is_same else said)


if __name__ == "__main__":
    main()
