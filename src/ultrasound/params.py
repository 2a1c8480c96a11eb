"""params.yaml and its overrides -> frozen, checked parameters.

params.yaml is the only home of values: no parameter has a default here, so that a key that is missing, misspelt or
of the wrong type is an error and never a silent choice. `load({"train.epochs": 5})` is what both
`python -m ultrasound train --train.epochs 5` and `mlflow run . -P train.epochs=5` come to.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from ultrasound.errors import ParameterError
from ultrasound.sections import SECTIONS, Params

FILE = Path("params.yaml")


def known() -> Iterator[tuple[str, str, str]]:
    """Yield (key such as `train.epochs`, type in words, description) for every parameter."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            yield f"{section}.{name}", _type_in_words(field.annotation), field.description or ""


def load(
    overrides: Mapping[str, Any] | None = None, file: Path = FILE, *, with_recipe: Callable[[Any], bool] | None = None
) -> Params:
    """Read `file`, lay `overrides` (dotted key -> value) over it, and check the whole.

    Args:
        with_recipe: whether `segment.recipe` goes before the file, though not before the overrides; is given all
            values, section -> key -> value, unchecked.

    Raises:
        ParameterError: the file is missing or no YAML, a key is unknown or missing, or a value is impossible.
    """
    if not file.is_file():
        raise ParameterError(f"{file} is not in {Path.cwd()}: run the command from the project's top folder")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ParameterError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{file} must hold sections ({', '.join(SECTIONS)}), found {type(values).__name__}")
    merged = _lay_over(values, overrides or {})
    segment = merged.get("segment")
    if with_recipe and with_recipe(merged) and isinstance(segment, dict) and isinstance(segment.get("recipe"), dict):
        merged = _lay_over(_lay_over(merged, segment["recipe"]), overrides or {})
    return _check(merged, str(file))


def override(params: Params, overrides: Mapping[str, Any]) -> Params:
    """Copy `params` with some values changed; checked like `load`.

    Raises:
        ParameterError: an unknown key or an impossible value.
    """
    return _check(_lay_over(params.model_dump(by_alias=True), overrides), "overrides")


def flatten(params: Params, sections: tuple[str, ...] = tuple(SECTIONS)) -> dict[str, Any]:
    """Dotted key -> value of the named sections, as they are logged with a run."""
    values = params.model_dump(mode="json", by_alias=True)
    return {f"{section}.{name}": value for section in sections for name, value in values[section].items()}


def _lay_over(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = {section: dict(content) if isinstance(content, dict) else content for section, content in values.items()}
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        if not name or not isinstance(merged.get(section), dict):
            raise ParameterError(f"unknown parameter {key}{_nearest(key)}")
        merged[section][name] = value
    return merged


def _check(values: dict[str, Any], where: str) -> Params:
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A value that may be of several types is refused once for each.
        distinct = {problem["loc"][:2]: problem for problem in reversed(error.errors())}
        raise ParameterError("; ".join(_sentence(problem, where) for problem in reversed(distinct.values()))) from None


def _sentence(problem: Any, where: str) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown parameter {key}{_nearest(key)}"
    if problem["type"] == "missing":
        return f"{where}: parameter {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    kinds = {name: kind for name, kind, _ in known()}
    section, name = (*problem["loc"], "", "")[:2]
    if "|" in (kind := kinds.get(f"{section}.{name}", "")) and len(problem["loc"]) > 2:
        key, message = f"{section}.{name}", f"it takes {kind.replace('|', ' or ')}"
    if not key:  # a rule over several sections names its keys itself
        return f"{where}: {message}"
    return f"{where}: {key}={problem['input']!r} is not possible: {message[0].lower()}{message[1:]}"


def _nearest(key: str) -> str:
    names = [name for name, _, _ in known()] + list(SECTIONS)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; sections are {', '.join(SECTIONS)}"


def _type_in_words(annotation: Any) -> str:
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return "|".join(parts)
    if kind is Annotated:
        return _type_in_words(parts[0])
    if kind in (Union, UnionType):
        return "|".join(_type_in_words(part) for part in parts if part is not type(None))
    words = {bool: "true|false", int: "integer", float: "number", str: "text", tuple: "list", dict: "mapping"}
    return words[kind or annotation]
