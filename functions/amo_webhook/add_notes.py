"""AmoQueue: read again what the hooks were about, and write what changed as notes, many a request."""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from amo_webhook.account import AmoAccount, amo_account, closed_if_forbidden, http_client
from amo_webhook.card import KnownCard, Marks, Proposal, card_key
from amo_webhook.change import Change, read_change
from amo_webhook.note_text import Names, differences, note_text, snapshot
from crm_relay.amocrm.client import DEADLINE, ValidationFailed
from crm_relay.amocrm.client import Account as Access
from crm_relay.amocrm.resources import CARDS, Card, add, notes, read_all, read_by_ids
from crm_relay.delivery.attempt import Task
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ports import Conflict, StorageError
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker, lease
from crm_relay.http_api import Event
from crm_relay.http_client import Exchange
from crm_relay.observability import count, log_failure, needs_attention, observed
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Rejected, Unreachable

TOGETHER = 250
"""Messages whose entities one request reads."""

_NEEDS_SECONDS = 3 * DEADLINE
_MAY_ARRIVE = 30
"""Seconds after which a note whose request got no answer is in its card, or never will be."""
_BUSY = 2
_LISTED_WITHIN = 60
"""Seconds after a hook in which a list may not show its entity yet."""
_LOOK_AGAIN = 10
_NEWS = 86_400
"""Seconds for which something is news."""
_TOLD = "added_told"
_OFTEN = 2
"""Waits after which it may be one card that amoCRM stumbles over."""
_MOST_NAMED = 10
"""Cards that one call of an operator names."""
_CLOCKS_DIFFER = 600


@observed(refuse=None)
def handler(event: Event, context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    """Work off what hooks have told."""
    relay = runtime()
    now = relay.ports.clock.time()
    # What is not begun by then would be cut off in the middle, and nobody would know what came of it.
    until = now + context.get_remaining_time_in_millis() / 1000 - DEADLINE
    worker = Worker(
        relay.ports,
        job=partial(_add_notes, relay, until=until, lease_until=int(now) + lease(context)),
        together=TOGETHER,
        needs_seconds=_NEEDS_SECONDS,
        give_up_after=relay.settings.relay.give_up_after_seconds,
        read=read_change,
        ready=partial(_expect_open, relay),
    )
    return worker.run(event, context)


def _expect_open(relay: Runtime, envelope: Envelope) -> None:
    name = Change.read(envelope).account
    if name in relay.settings.amocrm.accounts:
        amo_account(relay, name).check()


def _add_notes(relay: Runtime, tasks: Sequence[Task], *, until: float, lease_until: int) -> None:
    groups: dict[tuple[str, Card], list[Task]] = defaultdict(list)
    for task in tasks:
        change = Change.read(task.envelope)
        groups[change.account, change.card].append(task)
    for (name, card), group in groups.items():
        try:
            _Notes(relay, name, card, until=until, lease_until=lease_until).work(group)
        except Exception as failure:  # noqa: BLE001 (one account's trouble is not another's)
            for task in group:
                if not task.ended:
                    task.fail(failure)


@dataclass(frozen=True, slots=True)
class Draft:
    """A note to be written. `tasks` are all that it settles: what has happened to one card since the last note."""

    tasks: Sequence[Task]
    entity_id: int
    text: str
    known: KnownCard
    together: int
    """Notes that one request may hold with this one."""

    @property
    def marks(self) -> Marks:
        """What tells it in its card."""
        assert self.known.proposal is not None
        return self.known.proposal.marks

    def item(self) -> dict[str, Any]:
        """Return the note as amoCRM takes it."""
        return {
            "entity_id": self.entity_id,
            "note_type": "common",
            "params": {"text": self.text},
            "created_at": self.marks.created_at,
            "is_need_to_trigger_digital_pipeline": False,  # a robot that answers to notes would go round with us
        }

    def done(self, note_id: int) -> None:
        """End its tasks."""
        for task in self.tasks:
            task.done({"note": note_id})

    def fail(self, failure: Exception) -> None:
        """End its tasks without success."""
        for task in self.tasks:
            task.fail(failure)


class _Notes:
    """Where the notes of one kind of card in one account are written."""

    def __init__(self, relay: Runtime, name: str, card: Card, *, until: float, lease_until: int) -> None:
        self._ports = relay.ports
        self._texts = relay.settings.amocrm.texts
        self._account: AmoAccount = amo_account(relay, name)
        self._name = name
        self._card = card
        self._until = until
        self._lease_until = lease_until

    def work(self, tasks: Sequence[Task]) -> None:
        """Write the notes that these tasks ask for, and end each task."""
        by_id: dict[int, list[Task]] = defaultdict(list)
        for task in tasks:
            by_id[Change.read(task.envelope).id].append(task)
        cards = self._settled_doubts(self._known(by_id), by_id)
        # Read after the cards: what another worker notes meanwhile refuses our write, and nothing older is told.
        entities = dict(self._read_in_parts(self._entities, list(cards), by_id, ends=True))
        drafts = list(self._drafts(cards, by_id, entities)) if entities else []
        for some in _requests(drafts, self._account.settings.notes_per_request):
            self._post(self._announced(some))

    def _known(self, by_id: Mapping[int, Sequence[Task]]) -> dict[int, KnownCard]:
        """Return what is known of the cards; the tasks of one that cannot be read end here."""

        def read(entity_id: int) -> KnownCard | Exception:
            try:
                return KnownCard.read(self._ports.store, card_key(self._name, self._card, entity_id))
            except Exception as error:  # noqa: BLE001 (it is this card's alone)
                return error

        known: dict[int, KnownCard] = {}
        for entity_id, came in zip(by_id, self._ports.parallel(read, list(by_id)), strict=True):
            if isinstance(came, KnownCard):
                known[entity_id] = came
            else:
                _fail(by_id[entity_id], came)
        return known

    def _entities(self, ids: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
        """Yield entities by id, None for one that is not there."""
        found = self._run(lambda access: read_by_ids(access, CARDS[self._card], ids, now=self._account.now()))
        return ((entity_id, found.get(entity_id)) for entity_id in ids)

    def _run[T](self, operation: Callable[[Access], Exchange[T]]) -> T:
        return self._account.run(lambda access: closed_if_forbidden(operation(access)))

    def _read_in_parts[T](
        self,
        read: Callable[[Sequence[int]], Iterable[T]],
        ids: Sequence[int],
        by_id: Mapping[int, Sequence[Task]],
        *,
        ends: bool = False,
    ) -> Iterator[T]:
        """Yield what `read` returns of cards, read in halves where amoCRM refuses them together.

        The tasks of those that cannot be read end here.

        Args:
            read: reads some cards; raises an Outcome.
            ids: of the cards.
            by_id: the tasks of each card.
            ends: whether a card that is wrong even alone (400) is refused for good; otherwise it waits, too.
        """
        refused: dict[int, str] = {}
        waiting = deque(self._parts(ids, by_id))
        while waiting:  # the healthy half is read between two that fail, so one card alone does not open the circuit
            some = waiting.popleft()
            tasks = [task for entity_id in some for task in by_id[entity_id] if not task.ended]
            try:
                if self._account.now() > self._until:
                    raise NotExecuted("out_of_time", retry_after=1)
                yield from read(some)
            except (Rejected, Unreachable) as outcome:
                if len(some) > 1 and (isinstance(outcome, Rejected) or _have_waited(tasks)):
                    waiting += _halves(some)
                elif isinstance(outcome, Rejected):
                    refused[some[0]] = outcome.reason
                    is_wrong = ends and _is_about_content(outcome)
                    _fail(tasks, outcome if is_wrong else NotExecuted(outcome.reason))
                else:
                    _fail(tasks, outcome)
            except Outcome as outcome:
                _fail(tasks, outcome)
        if refused:
            self._call_operator("amoCRM refuses to show cards", refused)

    def _parts(self, ids: Sequence[int], by_id: Mapping[int, Sequence[Task]]) -> list[Sequence[int]]:
        if len(ids) < 2 or not _have_waited(task for entity_id in ids for task in by_id[entity_id]):
            return [ids] if ids else []
        # Where amoCRM stumbles over one of them, the first read, by which a circuit may close, is to succeed at times.
        first = int(self._ports.random() * len(ids))
        return _halves([*ids[first:], *ids[:first]])

    def _call_operator(self, problem: str, refused: Mapping[int, str]) -> None:
        ids = list(refused)[:_MOST_NAMED]
        reasons = sorted(set(refused.values()))
        needs_attention(
            problem, account=self._name, card=self._card, ids=ids, number=len(refused), reasons=reasons[:_MOST_NAMED]
        )

    # What earlier tries have left behind

    def _settled_doubts(
        self, cards: Mapping[int, KnownCard], by_id: Mapping[int, Sequence[Task]]
    ) -> dict[int, KnownCard]:
        """End the tasks whose note an earlier try has written; return the cards that may be written to now."""
        now = self._account.now()
        free: dict[int, KnownCard] = {}
        doubts: dict[int, list[Marks]] = defaultdict(list)
        for entity_id, known in cards.items():
            tasks, proposal = by_id[entity_id], known.proposal
            if wait := max((_may_arrive(task, now) for task in tasks), default=0.0):
                _fail(tasks, NotExecuted("note_may_still_arrive", retry_after=wait))
                continue
            owner = next((task for task in tasks if proposal and task.envelope.name == proposal.effect), None)
            if proposal and not owner and proposal.until > now:
                _fail(tasks, NotExecuted("card_busy", retry_after=_BUSY))
                continue
            free[entity_id] = known
            doubts[entity_id] += [marks for task in tasks if (marks := _marks(task))]
            if proposal and not owner:
                doubts[entity_id].append(proposal.marks)
        sought = {entity_id: several for entity_id, several in doubts.items() if several}
        written = dict(self._read_in_parts(partial(self._written, sought), list(sought), by_id))
        settled: dict[int, KnownCard] = {}
        for entity_id, known in free.items():
            if entity_id in sought and entity_id not in written:
                continue  # amoCRM did not let us look
            there = written.get(entity_id, {})
            for task in by_id[entity_id]:
                if (marks := _marks(task)) and (note_id := there.get(marks)):
                    task.done({"note": note_id})
            if known.proposal is None:
                settled[entity_id] = known
            else:
                settled[entity_id] = known.noted() if known.proposal.marks in there else known.without_proposal()
        return settled

    def _written(
        self, doubts: Mapping[int, Sequence[Marks]], ids: Sequence[int]
    ) -> Iterator[tuple[int, Mapping[Marks, int]]]:
        """Look for notes in their cards; yield, by card, the ids of those that are there."""
        earliest = min(marks.created_at for entity_id in ids for marks in doubts[entity_id])
        query = {
            "filter": {
                "entity_id": sorted(ids),
                "note_type": ["common"],
                "updated_at": {"from": earliest - _CLOCKS_DIFFER},
            }
        }
        found = self._run(lambda access: read_all(access, notes(self._card), query=query, now=self._account.now()))
        there: dict[int, dict[Marks, int]] = {entity_id: {} for entity_id in ids}
        for note in found:
            match note:
                case {
                    "id": int(note_id),
                    "entity_id": int(entity_id),
                    "created_at": int(created_at),
                    "params": {"text": str(text)},
                } if entity_id in there:  # ours has all of this
                    there[entity_id][Marks(created_at, _digest(text))] = note_id
        return iter(there.items())

    # What is to be said now

    def _drafts(
        self,
        cards: Mapping[int, KnownCard],
        by_id: Mapping[int, Sequence[Task]],
        entities: Mapping[int, Mapping[str, Any] | None],
    ) -> Iterator[Draft]:
        names = self._account.names(entity for entity in entities.values() if entity)
        quiet: list[KnownCard] = []
        for entity_id, entity in entities.items():
            known = cards[entity_id]
            tasks = [task for task in by_id[entity_id] if not task.ended]
            if not tasks:  # what has happened since has a hook of its own, and its note is still to be written
                quiet.append(known)
            elif entity is None or entity.get("is_deleted"):
                self._end_gone(tasks, is_listed=entity is not None)
            else:
                try:
                    draft = self._draft(tasks, entity, known, names)
                except Exception as error:  # noqa: BLE001 (it is this card's alone)
                    _fail(tasks, error)
                    continue
                if draft:
                    yield draft
                else:
                    _end(tasks, "nothing_to_say")
                    quiet.append(replace(known, values=_values(entity, known, added=False)))
        self._write_cards([known for known in quiet if known.is_news])

    def _end_gone(self, tasks: Sequence[Task], *, is_listed: bool) -> None:
        listed_since = self._account.now() - _LISTED_WITHIN
        early = [task for task in tasks if not is_listed and task.envelope.accepted_at > listed_since]
        _fail(early, NotExecuted("not_there_yet", retry_after=_LOOK_AGAIN))
        gone = [task for task in tasks if not task.ended]
        _end(gone, "gone")
        count("Gone", len(gone))

    def _draft(self, tasks: Sequence[Task], entity: Mapping[str, Any], known: KnownCard, names: Names) -> Draft | None:
        """Return the note about an entity; None if there is nothing to say, or nothing is to be said."""
        before = known.values
        # Whoever knows where hooks go can tell of any id: what is long over is no news, only compared with later.
        added = (before is None or not before.get(_TOLD)) and any(
            Change.read(task.envelope).added and _is_news(task, entity.get("created_at")) for task in tasks
        )
        values = _values(entity, known, added=added)
        if before is None:
            changed = any(_is_news(task, entity.get("updated_at")) for task in tasks)
        else:
            changed = bool(differences(before, values, texts=self._texts, names=names))
        if not ((added or changed) and self._is_in_wanted_stage(entity)):
            return None
        text = note_text(self._card, entity, before, added=added, texts=self._texts, names=names)
        doubtful = [task.claim.effect.notes for task in tasks if task.claim.in_doubt and task.claim.effect.notes]
        # In the second of the try before: should that one's note still come, the card shows the two as one.
        seconds = [earlier["created_at"] for earlier in doubtful]
        now = int(self._account.now())
        if known.dropped and known.dropped.until + _CLOCKS_DIFFER > now:
            seconds.append(known.dropped.marks.created_at)
        wished = max(seconds, default=now)
        marks = Marks(max(wished, known.noted_at + 1), _digest(text))
        proposal = Proposal(tasks[0].envelope.name, marks, values, self._lease_until)
        # A request that amoCRM did not get through in its time gets through in halves.
        together = min((max(1, earlier["together"] // 2) for earlier in doubtful), default=TOGETHER)
        return Draft(tasks, entity["id"], text, known.proposed(proposal), together)

    def _is_in_wanted_stage(self, entity: Mapping[str, Any]) -> bool:
        stages = self._account.settings.stages
        return self._card != "leads" or not stages or entity.get("status_id") in stages

    # Writing it

    def _announced(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Write, before the request leaves, which notes may be in their cards from now on; return these drafts."""
        now = self._account.now()

        def announce(draft: Draft) -> Draft | Exception:
            try:
                known = draft.known.write(self._ports.store, now=now)
                for task in draft.tasks:
                    task.claim.sent(asdict(draft.marks) | {"sent_at": int(now), "together": len(drafts)})
                return replace(draft, known=known)
            except Conflict:
                return NotExecuted("card_busy", retry_after=_BUSY)
            except Exception as error:  # noqa: BLE001 (it is this note's alone)
                return error

        if now > self._until:
            _fail(drafts, NotExecuted("out_of_time", retry_after=1))
            return []
        announced = []
        for draft, came in zip(drafts, self._ports.parallel(announce, drafts), strict=True):
            if isinstance(came, Draft):
                announced.append(came)
            else:
                draft.fail(came)
        return announced

    def _post(self, drafts: Sequence[Draft]) -> None:
        """Write notes with one request; where some of them are wrong, the others go again without these."""
        if not drafts:
            return
        items = [draft.item() for draft in drafts]
        try:
            if self._account.now() > self._until:
                raise NotExecuted("out_of_time", retry_after=1)
            made = self._run(lambda access: add(access, notes(self._card), items, now=self._account.now()))
        except Rejected as refusal:
            self._post_in_parts(drafts, refusal)
        except OutcomeUnknown as outcome:
            _fail(drafts, outcome)  # the proposals stay: whoever comes next looks into the cards
        except Outcome as outcome:
            _fail(drafts, outcome)
            self._write_cards([draft.known.without_proposal() for draft in drafts])
        else:
            for draft, note in zip(drafts, made, strict=True):
                draft.done(note["id"])
            self._write_cards([draft.known.noted() for draft in drafts])

    def _post_in_parts(self, drafts: Sequence[Draft], refusal: Rejected) -> None:
        if not _is_about_content(refusal):
            self._call_operator("amoCRM takes no notes", {draft.entity_id: refusal.reason for draft in drafts})
            _fail(drafts, NotExecuted(refusal.reason))
            self._write_cards([draft.known.without_proposal() for draft in drafts])
            return
        errors = refusal.items if isinstance(refusal, ValidationFailed) else {}
        wrong = [place for place in range(len(drafts)) if str(place) in errors]
        if not wrong and len(drafts) > 1:
            middle = len(drafts) // 2
            self._post(drafts[:middle])
            self._post(drafts[middle:])
            return
        wrong = wrong or [0]
        reasons: dict[int, str] = {}
        for place in wrong:
            its_own = errors.get(str(place)) or next(iter(errors.values()), ())
            reasons[drafts[place].entity_id] = reason = " ".join([refusal.reason, *its_own])
            drafts[place].fail(Rejected(reason))
        self._call_operator("amoCRM refuses notes", reasons)
        self._write_cards([drafts[place].known.noted() for place in wrong])
        self._post([draft for place, draft in enumerate(drafts) if place not in wrong])

    def _write_cards(self, cards: Sequence[KnownCard]) -> None:
        now = self._account.now()

        def write(known: KnownCard) -> Exception | None:
            try:
                known.write(self._ports.store, now=now)
            except (Conflict, StorageError) as error:
                return error
            return None

        for known, error in zip(cards, self._ports.parallel(write, cards), strict=True):
            if isinstance(error, StorageError):
                # Whoever comes next finds the proposal, and looks into the card.
                log_failure("card not written", error, key=known.key)


def _requests(drafts: Sequence[Draft], most: int) -> Iterator[list[Draft]]:
    """Share out drafts over requests of at most `most` notes, fewer where an earlier try was too much."""
    some: list[Draft] = []
    for draft in sorted(drafts, key=lambda draft: draft.together):
        if some and len(some) >= min(most, some[0].together):
            yield some
            some = []
        some.append(draft)
    if some:
        yield some


def _marks(task: Task) -> Marks | None:
    """Return what tells the note that an earlier try may have written; None if none did."""
    earlier = task.claim.effect.notes
    return Marks(earlier["created_at"], earlier["text_sha256"]) if task.claim.in_doubt and earlier else None


def _may_arrive(task: Task, now: float) -> float:
    """Return the seconds for which an earlier try's request may still be under way."""
    earlier = task.claim.effect.notes
    return max(0.0, earlier["sent_at"] + _MAY_ARRIVE - now) if task.claim.in_doubt and earlier else 0.0


def _have_waited(tasks: Iterable[Task]) -> bool:
    """Tell whether it may be one card that amoCRM stumbles over; before that, amoCRM is just down."""
    return any(task.claim.effect.waits > _OFTEN for task in tasks)


def _halves(ids: Sequence[int]) -> list[Sequence[int]]:
    return [ids[: len(ids) // 2], ids[len(ids) // 2 :]]


def _is_about_content(refusal: Rejected) -> bool:
    """Tell whether what was sent is wrong (400), so that sending it again cannot help."""
    return isinstance(refusal, ValidationFailed) or refusal.reason == "http_400"


def _is_news(task: Task, happened_at: object) -> bool:
    """Tell whether this was not long over when the hook came, however long the hook has waited since."""
    return isinstance(happened_at, int) and happened_at >= task.envelope.accepted_at - _NEWS


def _values(entity: Mapping[str, Any], known: KnownCard, *, added: bool) -> dict[str, Any]:
    """Return a snapshot that knows, too, whether a note has told that the entity was added."""
    told = added or bool(known.values and known.values.get(_TOLD))
    return snapshot(entity) | ({_TOLD: True} if told else {})


def _end(tasks: Iterable[Task], reason: str) -> None:
    for task in tasks:
        task.done({"note": None, "reason": reason})


def _fail(ending: Iterable[Task | Draft], failure: Exception) -> None:
    for each in ending:
        each.fail(failure)


def _digest(text: str) -> str:
    """Return what a text is known by, however amoCRM keeps its blanks and line ends."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


prepare(http_client)
