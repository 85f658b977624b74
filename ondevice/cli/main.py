"""The `ondevice` command: one file per subcommand, errors as one line.

Exit codes: 0 done, 1 an error that was explained, 2 wrong usage, 130 interrupted.
Nothing heavy is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import signal
import sys

import typer

from ondevice import __version__, debug
from ondevice.cli import (
    bench,
    build,
    chat,
    demo,
    doctor,
    eval,
    inspect,
    profile,
    recipes,
    run,
    targets,
    verify,
)
from ondevice.errors import OndeviceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"ondevice {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Compile a language model into an artifact for phones and laptops, and run it."""


app.command("build")(build.build)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("eval")(eval.evaluate)
app.command("bench")(bench.bench)
app.command("profile")(profile.profile)
app.command("recipes")(recipes.recipes)
app.command("targets")(targets.targets)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the `ondevice` script."""
    try:
        debug.check_variables()
        app()
    except OndeviceError as error:
        if debug.traceback():
            raise
        sys.exit(f"ondevice: error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
