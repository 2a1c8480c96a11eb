"""Show the prototype diagnostic page, which asks the served model. Research software; not for diagnosis.

It listens on this machine alone, at http://127.0.0.1:PORT, and asks the server at `app.url`, and for outlines that at
`app.outlines`; a bearer token comes from the environment variable ULTRASOUND_TOKEN. Ctrl-C or SIGTERM ends it.
"""

import sys

from ultrasound.app import launching
from ultrasound.errors import InputError
from ultrasound.params import flatten
from ultrasound.sections import Params

SECTIONS = ("app",)
FLAGS = {
    "with-server": "start `python -m ultrasound serve` too, and one of the segmenter on the port after it if that has "
    "a champion and app.outlines is null; ask them instead of app.url, and stop them at the end"
}


def run(params: Params, with_server: bool = False) -> None:
    """Show the page until stopped."""
    if not with_server:
        launching.run(params.app.url, params.app.port, params.app.outlines)
        return
    settings = flatten(params, ("serve",))
    host = "127.0.0.1" if params.serve.host in ("0.0.0.0", "::") else params.serve.host  # noqa: S104 - compared
    url, outlines, servers = _address(host, params.serve.port), params.app.outlines, {}
    missing = _missing(params.register_.name, params.serve.alias)
    models = {} if missing else {url: params.register_.name}
    if models and outlines is None and not _missing(params.segment.name, params.serve.alias):
        outlines = _address(host, params.serve.port + 1 + (params.serve.port + 1 == params.app.port))
        models[outlines] = params.segment.name
    for address, name in models.items():
        own = {"register.name": name, "serve.port": address.rpartition(":")[2]}
        given = [f"--{key}={value}" for key, value in {**settings, **own}.items()]
        servers[address] = [sys.executable, "-m", "ultrasound", "serve", *given]
    launching.run(url, params.app.port, outlines, servers, missing)


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _missing(name: str, alias: str) -> str:
    """Why a registered model has no version of this alias; empty if it has one."""
    from ultrasound.tracking import serving_versions  # the page itself needs no MLflow, which takes seconds

    try:
        serving_versions.resolve(name, alias)
    except InputError as error:
        return str(error)
    return ""
