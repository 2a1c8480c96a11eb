"""The OpenAPI 3.1 document of the server, made from the signature of the model that it serves."""

from __future__ import annotations

from typing import Any

from .bodies import FORMS, LARGEST, Shape

TYPES = {
    "string": "string", "boolean": "boolean", "integer": "integer", "long": "integer", "float": "number",
    "double": "number",
}  # fmt: skip
REFUSALS = {
    "400": "The body is no request for this model.",
    "408": "The body did not arrive in time.",
    "413": f"The body is larger than {LARGEST // 1_000_000} MB.",
    "415": "The body is not declared as application/json, or it is compressed.",
    "429": "As many requests wait as are let wait.",
    "500": "The model failed.",
    "503": "The server holds as many bodies as it has room for.",
}
GENERAL = {"401": "The bearer token is missing or wrong.", "421": "The server does not go by this Host."}


def document(model: str, shape: Shape, outputs: list[dict[str, Any]], secured: bool) -> dict[str, Any]:
    """Describe every path of the server.

    Args:
        model: name and version, as `breast-ultrasound/3`.
        outputs: the columns of an answer, as in MLflow's signature: name, type, perhaps items and required.
        secured: whether a bearer token is asked for.
    """
    security: dict[str, Any] = {"security": [{"token": []}]} if secured else {}
    cell = {"type": "string", "contentEncoding": "base64", "description": "a PNG, JPEG or DICOM file"}
    schemas = {
        "Request": _request(shape, cell),
        "Answer": {
            "type": "object",
            "required": ["predictions"],
            "properties": {"predictions": {"type": "array", "items": _row(outputs)}},
        },
        "Error": {
            "type": "object",
            "required": ["error_code", "message"],
            "properties": {
                "error_code": {"type": "string"},
                "message": {"type": "string", "description": "one sentence"},
            },
        },
        "Ready": {
            "type": "object",
            "required": ["ready", "model_version"],
            "properties": {
                "ready": {"type": "boolean"},
                "model_version": {"type": "string"},
                "run_id": {"type": "string"},
                "experiment_id": {"type": "string"},
            },
        },
    }
    ask = {
        "summary": "Classify images",
        "operationId": "invocations",
        "requestBody": {"required": True, "content": _json("Request")},
        "responses": {
            "200": {"description": "One prediction a row, in the order of the rows.", "content": _json("Answer")},
            **{status: _error(text, status in ("429", "503")) for status, text in {**REFUSALS, **GENERAL}.items()},
        },
        **security,
    }
    state = {"200": {"description": "Yes.", "content": _json("Ready")},
             "503": {"description": "Not for new requests.", "content": _json("Ready")}}  # fmt: skip
    text = {
        "200": {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    alive = {"200": {"description": "Yes.", "content": {"application/json": {}}}}
    described = {"200": {"description": "This document.", "content": {"application/json": {}}}}
    version = {"200": {"description": "MLflow's version.", "content": {"application/json": {}}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Breast ultrasound classifier",
            "version": model,
            "description": "Research software, not a medical device; not for diagnosis.",
        },
        "paths": {
            "/invocations": {"post": ask},
            "/health": _get("Whether the server lives", alive),
            "/ping": _get("Whether the server lives", alive, security),
            "/ready": _get("Whether the server takes new requests, and which model answers them", state),
            "/version": _get("Version of MLflow", version, security),
            "/metrics": _get("Counters for Prometheus", text, security),
            "/openapi.json": _get("This document", described, security),
        },
        "components": {
            "schemas": schemas,
            **({"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if secured else {}),
        },
    }


def _request(shape: Shape, cell: dict[str, Any]) -> dict[str, Any]:
    record = {"type": "object", "required": [shape.column], "properties": {shape.column: cell}}
    records, cells = ({"type": "array", "minItems": 1, "items": items} for items in (record, cell))
    forms: dict[str, dict[str, Any]] = {
        "dataframe_split": {
            "type": "object",
            "required": ["columns", "data"],
            "properties": {
                "columns": {"const": [shape.column]},
                "index": {"type": "array"},
                "data": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "array", "minItems": 1, "maxItems": 1, "items": cell},
                },
            },
        },
        "dataframe_records": records,
        "instances": {"anyOf": [records, cells]},
        "inputs": {
            "anyOf": [
                records, cells, {"type": "object", "required": [shape.column], "properties": {shape.column: cells}}
            ]
        },
    }  # fmt: skip
    parameters = {name: {"type": TYPES[kind]} if kind in TYPES else {} for name, kind in shape.parameters.items()}
    return {
        "type": "object",
        "properties": {
            **{form: forms[form] for form in FORMS},
            "params": {"type": "object", "additionalProperties": False, "properties": parameters},
        },
        "additionalProperties": False,
        "oneOf": [{"required": [form]} for form in FORMS],
    }


def _row(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [output["name"] for output in outputs if output.get("required", True)],
        "properties": {output["name"]: _column(output) for output in outputs},
    }


def _column(output: dict[str, Any]) -> dict[str, Any]:
    if output["type"] == "array":
        return {"type": "array", "items": _column(output["items"])}
    return {"type": TYPES[output["type"]]} if output["type"] in TYPES else {}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _error(text: str, later: bool) -> dict[str, Any]:
    after = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return {"description": text, "content": _json("Error"), **({"headers": after} if later else {})}


def _get(summary: str, responses: dict[str, Any], extra: dict[str, Any] | None = None) -> dict[str, Any]:
    refused = {"421": _error(GENERAL["421"], False), **({"401": _error(GENERAL["401"], False)} if extra else {})}
    return {"get": {"summary": summary, "responses": {**responses, **refused}, **(extra or {})}}
