"""`python -m ultrasound VERB [--section.key VALUE ...]`: what DVC stages and MLflow entry points call.

A verb is a module of `ultrasound.commands` with a docstring (its help), `SECTIONS` (the parameters it reads), perhaps
`ARGUMENTS`, `OPTIONS` and `FLAGS` of its own (name -> help), `run(params)`, and perhaps `with_recipe`, see
`params.load`. Parameters that it does not heed and so refuses on the command line are those of its `TASK` in
`sections.UNUSED`, or what `unused(params)` says. Modules are imported when their verb is called: `--help` stays fast.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import logging
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from ultrasound import NOTICE, __version__, commands, params
from ultrasound.errors import InputError, ParameterError, Terminated, raise_on_signals
from ultrasound.sections import UNUSED

# Threads of OpenMP that wait by spinning slow a training tenfold where other processes want the cores too. Read when
# torch is imported, which happens later, in the verbs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Verbs(click.Group):
    """The modules of `ultrasound.commands` as subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order in which they are used."""
        order = [
            "doctor",
            "download",
            "split",
            "preprocess",
            "report",
            "leakage",
            "probe",
            "train",
            "segment",
            "tune",
            "compare",
            "evaluate",
            "register",
            "serve",
            "predict",
            "app",
        ]
        found = [module.name for module in pkgutil.iter_modules(commands.__path__)]
        return sorted(found, key=lambda verb: (order.index(verb) if verb in order else len(order), verb))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Make the subcommand of a verb."""
        return Verb(name) if name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the subcommand; an unknown verb is answered with the known ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message} Verbs are {', '.join(self.list_commands(ctx))}.", ctx) from None


class Verb(click.Command):
    """One verb; every parameter of params.yaml is an option, but for those that mean nothing to it.

    Its own sections are in the help.
    """

    def __init__(self, name: str) -> None:
        doc, constants = _described(name)
        self.sections = constants["SECTIONS"]
        self.unused = UNUSED.get(constants.get("TASK", ""), ())
        self.arguments, self.options, self.flags = (
            constants.get(kind, {}) for kind in ("ARGUMENTS", "OPTIONS", "FLAGS")
        )
        every: list[click.Parameter] = [
            *(click.Argument([argument]) for argument in self.arguments),
            *(_option(*key) for key in params.known()),
            *(click.Option([f"--{option}"], help=text) for option, text in self.options.items()),
            *(click.Option([f"--{flag}"], is_flag=True, help=text) for flag, text in self.flags.items()),
        ]
        super().__init__(name, help=doc, callback=self._run, params=every)

    def _run(self, **options: Any) -> None:
        source = click.get_current_context().get_parameter_source
        names = [name.replace("-", "_") for name in (*self.arguments, *self.options, *self.flags)]  # as click has them
        own = {name: options.pop(name) for name in names}
        given = {
            option.replace("__", "."): value
            for option, value in options.items()
            if source(option) is click.core.ParameterSource.COMMANDLINE
        }
        for key in given:
            section = key.partition(".")[0]
            if section in commands.STAGES and section not in self.sections:
                raise ParameterError(
                    f"{key} belongs to the data stages, which {self.name} does not run: "
                    "set it in params.yaml, then `dvc repro`"
                )
        raise_on_signals()
        try:
            verb = _imported(f"ultrasound.commands.{self.name}")
            values = params.load(given, with_recipe=getattr(verb, "with_recipe", None))
            unused = verb.unused(values) if hasattr(verb, "unused") else self.unused
            for key in given:
                if key in unused:
                    raise ParameterError(f"{key} means nothing to {self.name} here: leave it out")
            verb.run(values, **own)
        except KeyboardInterrupt as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(128 + (stopped.number if isinstance(stopped, Terminated) else signal.SIGINT))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of the verb's own sections, with what params.yaml says now."""
        try:
            values = params.load()
            current = {key: _short(value) for key, value in params.flatten(values).items()}
        except InputError:
            current = {}
        else:
            if self.name == "segment":
                current |= {key: f"{_short(value)}, by segment.recipe" for key, value in values.segment.recipe.items()}
        if self.arguments:
            with formatter.section("arguments"):
                formatter.write_dl([(name.upper(), text) for name, text in self.arguments.items()])
        for section in self.sections:
            rows = []
            for key, kind, text in params.known():
                if key.startswith(f"{section}.") and key not in self.unused:
                    now = f"  [{current[key]}]" if key in current else ""
                    rows.append((f"--{key} {kind.upper() if '|' not in kind else kind}", text + now))
            with formatter.section(f"{section} (params.yaml)"):
                formatter.write_dl(rows, col_max=40)
        with formatter.section("also"):
            own = [(f"--{name} TEXT", text) for name, text in self.options.items()]
            own += [(f"--{flag}", text) for flag, text in self.flags.items()]
            formatter.write_dl(
                [*own, ("--help", "show this text"), ("--SECTION.KEY VALUE", "any other key of params.yaml")]
            )


def _imported(module: str) -> Any:
    # Nothing that is imported becomes garbage, and looking for it takes a third of the time of the imports.
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.enable()


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return text if len(text) <= 50 else "see params.yaml"


def _option(key: str, kind: str, text: str) -> click.Option:
    return click.Option([f"--{key}", key.replace(".", "__")], type=_Text() if kind == "text" else _Yaml(), help=text)


class _Text(click.ParamType[Any]):
    name = "text"

    def convert(self, value: str, param: Any, ctx: Any) -> Any:
        return None if value == "null" else value


class _Yaml(click.ParamType[Any]):
    name = "yaml"

    def convert(self, value: str, param: Any, ctx: Any) -> Any:
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            self.fail(f"{value!r} is no valid YAML value", param, ctx)


def _described(verb: str) -> tuple[str, dict[str, Any]]:
    """Docstring and constants of a verb's module. It is not imported, because it pulls in torch and MLflow."""
    file = Path(commands.__path__[0]) / f"{verb}.py"
    tree = ast.parse(file.read_text())
    named = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    read = ("SECTIONS", "TASK", "ARGUMENTS", "OPTIONS", "FLAGS")
    return ast.get_docstring(tree) or "", {name: ast.literal_eval(named[name]) for name in read if name in named}


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`dvc repro` runs download, split, preprocess and report; `mlflow run . -e VERB` runs leakage, probe, "
    "train, segment, tune, compare, evaluate, register and rollback as tracked runs.",
)
@click.version_option(__version__)
def cli() -> None:
    """Classify breast ultrasound images, and trust the number."""


cli.help = f"{cli.help}\n\n{NOTICE}"


def main() -> None:
    """Run the command line; an `InputError` becomes one sentence on stderr and its exit code."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # the first to be registered is the last to be called
    try:
        cli.main(prog_name="ultrasound")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        ended.append(error.exit_code)
        sys.exit(error.exit_code)
    except SystemExit as left:
        if isinstance(left.code, int):
            ended.append(left.code)
        raise


def _leave(ended: list[int]) -> None:
    """End the process without freeing what torch and MLflow hold object by object, which takes longer than `--help`.

    Threads have been waited for and what others registered has run. A process that fails otherwise ends as usual.
    """
    if ended:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


if __name__ == "__main__":
    main()
