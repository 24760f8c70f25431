"""The group `ipsrec`: finds a command, and turns an IpsrecError into one line and exit code 1."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

import click

from ipsrec_cli.clean_stop import clean_stop

COMMANDS = {
    "prepare": "Filter, order and split interactions into a dataset.",
    "train": "Train a model on a dataset.",
    "export": "Write the model file of a training run, through the gate.",
    "experiment": "Run a table of models over seeds, with statistics and a report.",
    "score": "Rank candidates for every user of a Parquet file.",
    "evaluate": "HR, MRR and NDCG of a model file, by the scoring code itself.",
    "inspect": "Show what is in a model file.",
    "doctor": "Show what this machine can run, and what is wrong with it.",
}


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
    try:
        with clean_stop():
            # Without standalone mode, click gives an exit code back instead of exiting, and a command its own value.
            code = ipsrec.main(args=arguments, prog_name="ipsrec", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("ipsrec: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone (`ipsrec inspect ... | head`): not worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        click.echo(f"ipsrec: {refused}", err=True)
        sys.exit(1)


def _refusal(error: Exception) -> str | None:
    """The one readable line for an error raised on purpose; None for a defect of ours."""
    from ipsrec_onnx.errors import IpsrecError
    from ipsrec_onnx.versions import how_to_install

    if isinstance(error, IpsrecError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        return f"{error.name} is not installed; mend it with: {how_to_install(EXTRA_OF[error.name])}"
    return None


EXTRA_OF = {
    "onnxruntime": "cpu",
    "faiss": "approximate",
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
