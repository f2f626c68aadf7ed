"""The group of commands: they are imported when they run, and an error is one line."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

ERROR = 1  # exit code; 2 is a wrong command line (click's)

# Room and summary of each command. The rooms import torch, which takes seconds: `--help` lists the summaries alone.
COMMANDS = {
    "demo": ("_demo", "Learn generated textures, score others, and draw the heat maps. Needs no data or connection."),
    "fit": ("_learn", "Learn a model from normal images, in one pass."),
    "update": ("_learn", "Learn more normal images with a model, as if they had come at the end of its training."),
    "predict": ("_predict", "Score images, and write tables, heat maps, masks and a report."),
    "evaluate": ("_evaluate", "Test a model on labelled images in MVTec AD's layout."),
    "info": ("_evaluate", "Print what a model was trained on, its settings and its size."),
    "export": ("_evaluate", "Write a model as one ONNX file, from images (n, 3, H, W) to scores and maps."),
}


class Commands(TyperGroup):
    """Commands that are imported when they run. An error is one line and exit code 1, or a traceback with --debug."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=summary) for name, (_, summary) in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command to be run, the command and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with warnings.catch_warnings():
                if not ctx.params.get("debug"):
                    warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (OSError, ValueError, TypeError, ImportError, RuntimeError, MemoryError) as error:
            if ctx.params.get("debug") or isinstance(error, (typer.Exit, typer.Abort)):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(ERROR) from error


def load_command(name: str) -> Any:
    """Import the room of a command and return the command."""
    room, _ = COMMANDS[name]
    app = typer.Typer(add_completion=False)
    app.command(name)(getattr(import_module(f"ipca_sklearn.cli.{room}"), name))
    return typer.main.get_command(app)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
