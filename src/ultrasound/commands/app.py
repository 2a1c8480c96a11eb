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
    models = {params.register_.name: params.serve.port}
    if params.app.outlines is None and _has(params.segment.name, params.serve.alias):
        models[params.segment.name] = params.serve.port + 1 + (params.serve.port + 1 == params.app.port)
    servers = {}
    for name, port in models.items():
        given = [f"--{key}={value}" for key, value in {**settings, "register.name": name, "serve.port": port}.items()]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        servers[url] = [sys.executable, "-m", "ultrasound", "serve", *given]
    url, *others = servers
    launching.run(url, params.app.port, others[0] if others else params.app.outlines, servers)


def _has(name: str, alias: str) -> bool:
    """Whether a registered model has a version of this alias."""
    from ultrasound.tracking import serving_versions  # the page itself needs no MLflow, which takes seconds

    try:
        serving_versions.resolve(name, alias)
    except InputError:
        return False
    return True
