"""`relay dead-letters`: what was given up, why, and how it is sent again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from crm_relay.delivery.aws import SqsQueue
from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.delivery.ledger import Effect, Ledger
from crm_relay.delivery.ports import StorageError
from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    YesOption,
    age,
    confirm,
    err,
    examples,
    flag,
    print_json,
    print_keyed,
    say,
    shown,
    tell,
)
from workbench.cli.target import QueuePair, Target

if TYPE_CHECKING:
    from workbench.cli.world import World

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="See what was given up, and send it again once the cause is mended.",
)

_PEEK = 60
"""Seconds for which a look hides messages, unless it hands them back before."""
_LONG_POLL = 1
"""Seconds: without waiting, SQS asks only some of the servers that a queue is spread over."""
_BATCH = 10
_IDLE_BATCHES = 3
_TOO_OFTEN = "too_many_receives"
"""The reason of a message that SQS itself moved: its worker died each time."""

QueueOption = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="Only these dead letters, by the name in the list.")
]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A received dead letter; times are unix seconds. `envelope` is None if the body is none of ours."""

    queue: QueuePair
    id: str
    handle: str
    body: str
    reason: str
    sent_at: float
    envelope: Envelope | None

    @classmethod
    def read(cls, queue: QueuePair, message: Mapping[str, Any]) -> "DeadLetter":
        """Read what SQS hands out."""
        body = message["Body"]
        try:
            envelope = Envelope.decode(body)
        except NotOurs:
            envelope = None
        reason = message.get("MessageAttributes", {}).get("reason", {}).get("StringValue", _TOO_OFTEN)
        sent_at = int(message["Attributes"]["SentTimestamp"]) / 1000
        return cls(queue, message["MessageId"], message["ReceiptHandle"], body, reason, sent_at, envelope)

    @property
    def since(self) -> float:
        """When the call came in, or else when the message was sent."""
        return self.envelope.accepted_at if self.envelope else self.sent_at


@app.command("list", epilog=examples("relay dead-letters list", "relay dead-letters list --queue lead --json"))
def list_(
    ctx: typer.Context,
    *,
    queue: QueueOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many to look at, of each queue.")] = 50,
    reveal: Annotated[bool, flag("--reveal", meaning="With --json: the bodies, too. They hold personal data.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, without taking them away."""
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    ledger = Ledger(target.store, world.clock)
    letters = []
    for pair in _chosen(target, queue):
        with _peeked(target, pair, limit) as seen:
            letters += sorted(seen, key=lambda letter: letter.since)
        if len(seen) >= limit:
            tell(f"[yellow]There may be more in {pair.name} than these {limit}; --limit shows them.[/]")
    known = [(letter, ledger.find(letter.envelope.name) if letter.envelope else None) for letter in letters]
    if as_json:
        print_json([_as_json(letter, effect, reveal=reveal) for letter, effect in known])
        return
    if not known:
        say("[green]No dead letters.[/]")
        return
    now = world.clock.time()
    for letter, effect in known:
        told = [letter.envelope.kind if letter.envelope else f"queue {letter.queue.name}"]
        told.append(f"{age(now - letter.since)} old")
        if effect:
            told.append(f"retries: {effect.tries + effect.waits}")
        last_error = effect.last_error if effect else None
        told.append(f"{letter.reason}: {last_error}" if last_error else letter.reason)
        print_keyed(letter.envelope.key if letter.envelope else letter.id, map(shown, told))
    say(f"[dim]Once the cause is mended:[/] relay dead-letters redrive{target.option}")


@app.command(
    epilog=examples(
        "relay dead-letters redrive --dry-run",
        "relay dead-letters redrive --queue lead --rate 2 --stack crm-relay",
    )
)
def redrive(
    ctx: typer.Context,
    *,
    queue: QueueOption = None,
    dry_run: Annotated[bool, flag("--dry-run", meaning="Only say how many would be sent, and where to.")] = False,
    rate: Annotated[float, typer.Option(min=0.1, max=100, metavar="N", help="Messages a second, at most.")] = 5.0,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Send dead letters to their queue again.

    What was done meanwhile is not done twice: the ledger knows. If this is
    interrupted, nothing is lost; give the command again.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    waiting = {pair: target.depth(pair.dead_letters_url) for pair in _chosen(target, queue)}
    if not any(waiting.values()):
        say("[green]No dead letters.[/]")
        return
    for pair, number in waiting.items():
        say(f"{number:>6}  {pair.name}  [dim]→ {shown(pair.url.rpartition('/')[2])}[/]")
    if dry_run:
        say("Nothing was sent.")
        return
    confirm(f"Send them again, in {target}?", yes=yes)
    sent = 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    try:
        with bar:
            for pair, number in waiting.items():
                task = bar.add_task(pair.name, total=number)
                for _ in _sent_again(target, pair, world, rate):
                    sent += 1
                    bar.advance(task)
    finally:
        say(f"{sent} sent again.")


def _sent_again(target: Target, pair: QueuePair, world: "World", rate: float) -> Iterator[DeadLetter]:
    """Move the dead letters of one queue, one by one, and tell each that was moved."""
    started = world.clock.time()
    # What dies again while this runs must not go round and round.
    fresh: list[DeadLetter] = []
    idle = 0
    try:
        while idle < _IDLE_BATCHES and (batch := _received(target, pair, _BATCH, _PEEK + int(_BATCH / rate))):
            old = [letter for letter in batch if letter.sent_at <= started]
            fresh += [letter for letter in batch if letter.sent_at > started]
            idle = 0 if old else idle + 1
            for letter in _moved(target, pair, old):
                yield letter
                world.clock.sleep(1 / rate)
    finally:
        _hand_back(target, pair, fresh)


def _moved(target: Target, pair: QueuePair, letters: Sequence[DeadLetter]) -> Iterator[DeadLetter]:
    source = SqsQueue(target.sqs, pair.url)
    left = list(letters)
    try:
        while left:
            letter = left[0]
            source.send(letter.body)
            # Deleted only now: a crash in between sends it twice, never not at all.
            target.sqs.delete_message(QueueUrl=pair.dead_letters_url, ReceiptHandle=letter.handle)
            yield left.pop(0)
    finally:
        _hand_back(target, pair, left)


@contextmanager
def _peeked(target: Target, pair: QueuePair, limit: int) -> Iterator[list[DeadLetter]]:
    """Hold up to `limit` dead letters, and hand them all back at the end."""
    seen: list[DeadLetter] = []
    try:
        while len(seen) < limit and (batch := _received(target, pair, min(_BATCH, limit - len(seen)), _PEEK)):
            seen += batch
        yield seen
    finally:
        _hand_back(target, pair, seen)


def _received(target: Target, pair: QueuePair, number: int, hidden_for: int) -> list[DeadLetter]:
    answer = target.sqs.receive_message(
        QueueUrl=pair.dead_letters_url,
        MaxNumberOfMessages=number,
        VisibilityTimeout=hidden_for,
        WaitTimeSeconds=_LONG_POLL,
        MessageSystemAttributeNames=["SentTimestamp"],
        MessageAttributeNames=["reason"],
    )
    return [DeadLetter.read(pair, message) for message in answer.get("Messages", [])]


def _hand_back(target: Target, pair: QueuePair, letters: Sequence[DeadLetter]) -> None:
    dead_letters = SqsQueue(target.sqs, pair.dead_letters_url)
    for letter in letters:
        with suppress(StorageError):  # then it comes back by itself, when its time is over
            dead_letters.hand_back(letter.handle, delay=0)


def _chosen(target: Target, name: str | None) -> list[QueuePair]:
    chosen = [pair for pair in target.queues if name in (None, pair.name)]
    if not chosen:
        raise Problem(f"There is no queue {name}: {', '.join(pair.name for pair in target.queues)}.")
    return chosen


def _as_json(letter: DeadLetter, effect: Effect | None, *, reveal: bool) -> dict[str, Any]:
    return {
        "queue": letter.queue.name,
        "message_id": letter.id,
        "reason": letter.reason,
        "kind": letter.envelope.kind if letter.envelope else None,
        "key": letter.envelope.key if letter.envelope else None,
        "since": int(letter.since),
        "state": effect.state.value if effect else None,
        "retries": effect.tries + effect.waits if effect else None,
        "last_error": effect.last_error if effect else None,
        **({"body": letter.body} if reveal else {}),
    }
