"""The group `ipsrec`: finds a command, and turns an IpsrecError into one line and exit code 1."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

import click

from ipsrec_cli.clean_stop import clean_stop
from ipsrec_cli.options import LOG_JSON

COMMANDS = {
    "prepare": "Filter, order and split interactions into a dataset.",
    "train": "Train a model on a dataset.",
    "export": "Write the model file of a training run, through the gate.",
    "experiment": "Run a table of models over seeds, with statistics and a report.",
    "plan": "Say how long a scoring job will take, with how much memory.",
    "score": "Rank candidates for every user of a Parquet file.",
    "evaluate": "HR, MRR and NDCG of a model file, by the scoring code itself.",
    "inspect": "Show what is in a model file.",
    "doctor": "Show what this machine can run, and what is wrong with it.",
}


class _Interrupted(BaseException):
    """Ctrl-C, by a name that click does not know."""


class LazyGroup(click.Group):
    """Import a command's module only when that command runs, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load ipsrec_cli/<command>.py and take its function of the same name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ipsrec_cli.{cmd_name}")
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"ipsrec_cli.{cmd_name}.{cmd_name} is no command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click would answer Ctrl-C with an empty line, which no log wants."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ipsrec-onnx")
def ipsrec() -> None:
    """Offline candidate generation that learns from items and their providers."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 0 done, 1 refused with one line, 2 wrong usage, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """
    as_json = LOG_JSON in (sys.argv[1:] if arguments is None else arguments)
    say = functools.partial(_say, as_json=as_json)
    try:
        with clean_stop(say):
            # Without standalone mode, click gives an exit code back instead of exiting, and a command its own value.
            code = ipsrec.main(args=arguments, prog_name="ipsrec", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        if as_json:
            say(error.format_message(), error.exit_code)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt, _Interrupted):
        say("interrupted", 128 + signal.SIGINT)
        _leave(128 + signal.SIGINT)
    except SystemExit as stop:
        _leave(stop.code)
    except BrokenPipeError:
        # The reader of our output has gone (`ipsrec inspect ... | head`): not worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _show_traceback()
        say(_refusal(error), 1)
        _leave(1)


def _say(message: str, exit_code: int, *, as_json: bool) -> None:
    """Say on stderr, in one line, why the command ends."""
    if as_json:
        from ipsrec_onnx.json_lines import write_json_line

        write_json_line("error", level="error", message=message, exit_code=exit_code)
    else:
        click.echo(f"ipsrec: {message}", err=True)


def _leave(code: object) -> NoReturn:
    """Exit, without waiting for threads that a signal has left with a chunk, or an error with a model half open."""
    if isinstance(code, int) and any(thread.name.startswith("ipsrec-w") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code if isinstance(code, int) else 1)


def _show_traceback() -> None:
    """Show where an error comes from, for who asks for it by the environment."""
    from ipsrec_onnx.broken_work import TRACEBACK_VARIABLE

    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()


def _refusal(error: Exception) -> str:
    """The one readable line for an error."""
    from ipsrec_onnx.broken_work import describe_error
    from ipsrec_onnx.errors import IpsrecError
    from ipsrec_onnx.versions import how_to_install

    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        said = f"{error.name} is not installed; mend it with: {how_to_install(EXTRA_OF[error.name])}"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        said = f"{error.filename}: {error.strerror}; is it still there, and may you use it?"
    else:
        said = str(error if isinstance(error, IpsrecError) else describe_error(error, where=""))
    return " ".join(said.split())  # names of files may have line breaks


EXTRA_OF = {
    "onnxruntime": "cpu",
    "faiss": "approximate",
    "ray": "ray",
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "polars": "train",
    "safetensors": "train",
    "optuna": "experiment",
    "scipy": "experiment",
    "matplotlib": "experiment",
    "jinja2": "experiment",
}


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout, for --json."""
    click.echo(json.dumps(value, indent=2, sort_keys=False, allow_nan=False))
