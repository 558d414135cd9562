"""`relay`: everything that a person does with a relay, on the local stack or on a deployed one."""

from importlib import import_module
from typing import Any, override

import typer
from typer.core import TyperGroup

from workbench.cli.console import Problem, complain
from workbench.cli.world import World

_COMMANDS = {
    "start": "workbench.cli.start:start",
    "status": "workbench.cli.start:status",
    "send": "workbench.cli.events:send",
    "sign": "workbench.cli.events:sign",
    "leads": "workbench.cli.leads:app",
    "deliveries": "workbench.cli.deliveries:app",
    "dead-letters": "workbench.cli.dead_letters:app",
    "secrets": "workbench.cli.secrets:app",
    "amo": "workbench.cli.amo:app",
    "bitrix": "workbench.cli.bitrix:app",
    "check": "workbench.cli.check:check",
}
"""Where each command is. A command's module is imported when it is asked for: boto3 and pydantic take their time."""


class Commands(TyperGroup):
    """The commands, and the one place where what went wrong is told."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command()(function)
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    @override
    def invoke(self, ctx: Any) -> Any:
        ctx.ensure_object(World)
        try:
            return super().invoke(ctx)
        except Problem as problem:
            complain(str(problem))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("Stopped.")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            # Not at the top: a command that needs no AWS need not wait for boto3.
            from workbench.cli.target import explained  # noqa: PLC0415

            explanation = explained(error)
            if explanation is None:
                raise
            complain(explanation)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they may hold secrets
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def relay() -> None:
    """Run, use and repair a relay between CRMs.

    Commands work on the local stack that `relay start` runs, or with --stack NAME on a deployed one.
    """


main = app
"""The entry point."""
