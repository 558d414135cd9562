"""Contacts and companies in the hub: found by marker, phone or e-mail, or else created; each once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from bitrix_robot.mapping import communications, hub_card, marker
from bitrix_robot.matches import Matches
from bitrix_robot.portal import Portal, expect
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.client import APPEARS_WITHIN, Operation, Refused
from crm_relay.bitrix24.items import COMPANY, CONTACT, MOST_VALUES, Item
from crm_relay.delivery.ledger import Busy, Claim, Effect, Ledger
from crm_relay.delivery.ports import Ports
from crm_relay.outcomes import NotExecuted, Outcome, Rejected

type CardKind = Literal["contact", "company"]

_TYPES: Mapping[CardKind, int] = {"contact": CONTACT, "company": COMPANY}
_ENTITIES: Mapping[CardKind, Literal["CONTACT", "COMPANY"]] = {"contact": "CONTACT", "company": "COMPANY"}
_COMMUNICATIONS: tuple[Literal["PHONE", "EMAIL"], ...] = ("PHONE", "EMAIL")
_LOOKUPS = ("marker", *_COMMUNICATIONS)
"""What counts first, first."""
_BUSY = 3


@dataclass(frozen=True, slots=True)
class SourceCard:
    """A contact or company of the source."""

    kind: CardKind
    id: int


class Gone(Rejected):
    """It is not in the source any more, or not for our eyes."""

    def __init__(self) -> None:
        super().__init__("card_gone")


def cards_of(deal: Mapping[str, Any]) -> list[SourceCard]:
    """Return a deal's contacts, the primary one first, and its company."""
    contacts = [int(deal.get("contactId") or 0), *map(int, deal.get("contactIds") or ())]
    company = int(deal.get("companyId") or 0)
    found = [SourceCard("contact", contact) for contact in dict.fromkeys(contacts) if contact]
    return found + ([SourceCard("company", company)] if company else [])


@dataclass(slots=True, eq=False)
class _Search:
    """A card that is ours to find: `came` is the hub's id, or what was in the way."""

    card: SourceCard
    claim: Claim
    item: Item = field(default_factory=dict)
    came: int | Exception | None = None

    @property
    def kind(self) -> int:
        return _TYPES[self.card.kind]


class Cards:
    """The hub's contacts and companies, for those of one source."""

    def __init__(self, ports: Ports, source: Portal, hub: Portal, matches: Matches) -> None:
        """Join two portals."""
        self._ports = ports
        self._source = source
        self._hub = hub
        self._matches = matches

    def found_or_created(self, wanted: Iterable[SourceCard], *, lease: int) -> dict[SourceCard, int | Exception]:
        """Return the hub's id of each, or what was in the way: an Outcome, Gone, or what the ledger raises.

        Args:
            wanted: the source's.
            lease: seconds for which the ledger lets us alone with them.
        """
        cards = list(dict.fromkeys(wanted))
        claims = self._ports.parallel(partial(self._claim, lease), cards)
        found = {card: _known(claim) for card, claim in zip(cards, claims, strict=True) if not isinstance(claim, Claim)}
        ours = [_Search(card, claim) for card, claim in zip(cards, claims, strict=True) if isinstance(claim, Claim)]
        for step in (self._read, self._look_up, self._create):
            going = [search for search in ours if search.came is None]
            try:
                step(going)
            except Exception as failure:  # noqa: BLE001 (the cards are to be given back, whatever it is)
                for search in going:
                    search.came = failure if search.came is None else search.came
        self._ports.parallel(_end, ours)
        return found | {search.card: search.came for search in ours if search.came is not None}

    def _claim(self, lease: int, card: SourceCard) -> Claim | Effect | Exception:
        name = f"bitrix24.card#{self._hub.name}#{self._source.name}#{card.kind}#{card.id}"
        try:
            return Ledger(self._ports.store, self._ports.clock).claim(name, "", lease=lease)
        except Exception as error:  # noqa: BLE001 (it is this card's alone)
            return error

    def _read(self, searches: Sequence[_Search]) -> None:
        answers = self._source.do_all({search: items.get(search.kind, search.card.id) for search in searches})
        for search, answer in answers.items():
            if isinstance(answer, Refused) and answer.reason == "not_found":
                search.came = Gone()
            elif isinstance(answer, Outcome):
                search.came = answer
            else:
                search.item = answer

    def _look_up(self, searches: Sequence[_Search]) -> None:
        lookups = {(search, way): each for search in searches for way, each in self._lookups(search).items()}
        answers = self._hub.do_all(lookups)
        for search in searches:
            own = [answers[search, way] for way in _LOOKUPS if (search, way) in answers]
            try:
                hits = [hit for answer in own for hit in expect(answer)]
            except Outcome as outcome:
                search.came = outcome
                continue
            if hits:
                search.came = int(hits[0]["id"] if isinstance(hits[0], dict) else hits[0])
            elif search.claim.in_doubt and (wait := self._may_appear(search.claim)) > 0:
                search.came = NotExecuted("card_may_still_appear", retry_after=wait)

    def _lookups(self, search: _Search) -> dict[str, Operation[Any]]:
        lookups: dict[str, Operation[Any]] = {}
        for way in _COMMUNICATIONS:
            if values := communications(search.item, way)[:MOST_VALUES]:
                lookups[way] = items.find_by_communication(way, values, _ENTITIES[search.card.kind])
        if search.claim.in_doubt or not lookups:
            marked = self._marker(search)
            lookups["marker"] = items.find_by_origin(search.kind, marked["originatorId"], marked["originId"])
        return lookups

    def _create(self, searches: Sequence[_Search]) -> None:
        self._matches.learn_users(
            int(search.item["assignedById"]) for search in searches if search.item.get("assignedById")
        )
        _leave_twins(searches)
        self._ports.parallel(partial(_announce, int(self._hub.now())), [each for each in searches if each.came is None])
        answers = self._hub.do_all(
            {search: items.add(search.kind, self._fields(search)) for search in searches if search.came is None}
        )
        for search, answer in answers.items():
            search.came = answer if isinstance(answer, Outcome) else int(answer["id"])

    def _fields(self, search: _Search) -> dict[str, Any]:
        return hub_card(
            search.item,
            marked=self._marker(search),
            users=self._matches.users,
            responsible=self._matches.responsible,
        )

    def _marker(self, search: _Search) -> dict[str, str]:
        return marker(self._source.settings.member_id, search.card.kind, search.card.id)

    def _may_appear(self, claim: Claim) -> float:
        sent_at = (claim.effect.notes or {}).get("sent_at", 0)
        return float(sent_at) + APPEARS_WITHIN - self._hub.now()


def _leave_twins(searches: Sequence[_Search]) -> None:
    """Of new cards that share a phone or an address let one be made; the others find it then."""
    taken: set[tuple[str, str, str]] = set()
    for search in searches:
        own = {(search.card.kind, way, each) for way in _COMMUNICATIONS for each in communications(search.item, way)}
        if own & taken:
            search.came = NotExecuted("card_busy", retry_after=_BUSY)
        else:
            taken |= own


def _known(claim: Effect | Exception) -> int | Exception:
    match claim:
        case Effect(result={"id": int(hub_id)}):
            return hub_id
        case Effect():
            return Gone()
        case Busy():
            return NotExecuted("card_busy", retry_after=_BUSY)
        case error:
            return error


def _announce(sent_at: int, search: _Search) -> None:
    try:
        search.claim.sent({"sent_at": sent_at})
    except Exception as error:  # noqa: BLE001 (it is this card's alone)
        search.came = error


def _end(search: _Search) -> None:
    """Write into the ledger what came of it."""
    try:
        match search.came:
            case int(hub_id):
                search.claim.confirm({"id": hub_id})
            case Gone(reason=reason):
                search.claim.reject(reason)
            case failure:
                # Where the table has failed, this may fail too: then the lease must run out.
                happened = False if isinstance(failure, NotExecuted | Rejected) else None
                search.claim.wait(str(failure) if isinstance(failure, Outcome) else "error", happened=happened)
    except Exception as error:  # noqa: BLE001 (it is this card's alone)
        search.came = error
