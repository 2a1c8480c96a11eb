"""Serve the registered model that an alias points to, behind a guard, and follow the alias when it moves.

Answers at http://HOST:PORT/invocations as `mlflow models serve` does; /openapi.json describes it. With a bearer token
in the environment variable ULTRASOUND_TOKEN only who knows it is answered. Ctrl-C or SIGTERM ends it, after the
requests that were being answered.
"""

from ultrasound.sections import Params
from ultrasound.serving import fleet

SECTIONS = ("register", "serve")


def run(params: Params) -> None:
    """Serve until stopped."""
    fleet.serve(params.register_.name, params.serve)
