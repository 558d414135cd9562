"""`relay start` and `relay status`: everything on this machine, and how it is doing."""

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from crm_relay.settings import ConfigurationError
from workbench.cli.console import JsonOption, Problem, out, print_json
from workbench.cli.control import Control
from workbench.cli.scenes import Scenes, show_status
from workbench.cli.world import ROOT, World


def start(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option(envvar="RELAY_PORT", min=0, max=65_000, help="Of the API; the sandboxes take the next ones.")
    ] = 3000,
    story: Annotated[bool, typer.Option("--story/--no-story", help="Play the sample events.")] = True,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop after the story; the exit code is 1 if something unexpected came of it."),
    ] = False,
    live: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE.json",
            help="A secret with real credentials, as in Secrets Manager: the CRMs in it are the real ones.",
        ),
    ] = None,
) -> None:
    """Run everything here: API, queues, functions, CRM sandboxes. Play the sample events. Stay up until Ctrl-C."""
    from workbench.stack import AlreadyRunning, CloudError, PortInUse, UnsupportedTemplate  # noqa: PLC0415 (slow)

    world: World = ctx.obj
    try:
        as_told = asyncio.run(_run(world, port=port, story=story, once=once, live=live))
    except asyncio.CancelledError:
        out.print("\nStopped.")
        raise typer.Exit(130 if once else 0) from None
    except AlreadyRunning as first:
        stop = f"\nStop it with Ctrl-C where it runs, or with: kill {first.pid}" if first.pid else ""
        raise Problem(f"{_sentence(first)}{stop}") from None
    except (CloudError, ConfigurationError, PortInUse, UnsupportedTemplate) as problem:
        raise Problem(_sentence(problem)) from None
    if not as_told:
        raise typer.Exit(1)


def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show where the local stack is, its own keys, what its functions did, and what waits in its queues."""
    found = Control.of(ctx.obj).status()
    if as_json:
        print_json(found)
    else:
        show_status(found)


async def _run(world: World, *, port: int, story: bool, once: bool, live: Path | None) -> bool:
    """Run until the story is told, or until somebody stops it; return whether all came as it must."""
    from workbench.control import announced  # noqa: PLC0415 (slow)
    from workbench.local_relay import LocalRelay  # noqa: PLC0415
    from workbench.story import Story  # noqa: PLC0415

    _stop_calmly()
    scenes = Scenes(world.state / "logs")
    _keep_complaints(scenes)
    async with AsyncExitStack() as stack:
        with scenes.starting():
            running = LocalRelay.started(
                template=ROOT / "template.yaml",
                config=world.config,
                state=world.state,
                port=port,
                live=live,
                on_log=scenes.log,
                on_event=scenes.event,
            )
            relay = await stack.enter_async_context(running)
            await stack.enter_async_context(announced(relay, world.local))
        scenes.running(relay)
        told = Story(relay, scenes.step) if story and not relay.real_crms else None
        if told:
            scenes.story()
            await told.play()
            relay.story = told.report()
            scenes.table(relay, told)
        if once:
            return told is None or told.ok
        scenes.next_steps(relay)
        await relay.stack.wait()
    return True


def _stop_calmly() -> None:
    """Let the first Ctrl-C, or kill, end everything in order; let a second one change nothing about that."""
    main = asyncio.current_task()
    assert main
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:
            asked = True
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _keep_complaints(scenes: Scenes) -> None:
    """Send what libraries log to a file, and show only what the workbench itself has to say."""
    scenes.logs.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(scenes.logs / "workbench.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(file)
    logging.getLogger("workbench").addHandler(scenes)


def _sentence(problem: Exception) -> str:
    text = str(problem)
    return f"{text[:1].upper()}{text[1:]}."
