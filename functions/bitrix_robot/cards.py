"""Contacts and companies in the hub: found by marker, phone or e-mail, or else created; each once."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from typing import Any, Literal

from bitrix_robot.mapping import communications, hub_card, marker
from bitrix_robot.matches import Matches
from bitrix_robot.portal import Portal, expect
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.client import APPEARS_WITHIN, PAGE, Operation, Refused, Unusable, ids
from crm_relay.bitrix24.items import COMPANY, CONTACT, MOST_VALUES, Item
from crm_relay.delivery.ledger import Busy, Claim, Effect, Ledger, State
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
    """Return a deal's contacts, the primary one first, and its company.

    Raises:
        Unusable: what stands there are no ids.
    """
    contacts = dict.fromkeys(ids(deal.get("contactId")) + ids(deal.get("contactIds")))
    companies = ids(deal.get("companyId"))[:1]
    return [SourceCard("contact", each) for each in contacts] + [SourceCard("company", each) for each in companies]


def user_of(item: Mapping[str, Any]) -> int:
    """Return who is responsible for an item, 0 if that is nobody or cannot be read."""
    try:
        return sum(ids(item.get("assignedById"))[:1])
    except Unusable:
        return 0


def still_there(known: Mapping[SourceCard, int], answers: Mapping[Any, Any]) -> dict[SourceCard, int]:
    """Return the known cards that the answers to `Cards.checks` leave; all of those that could not be asked for."""
    present: dict[CardKind, set[int]] = {"contact": set(), "company": set()}
    for check, answer in answers.items():
        if isinstance(check, _Check):
            asked_in_vain = isinstance(answer, Outcome)
            present[check.kind] |= set(check.ids) if asked_in_vain else {item["id"] for item in answer}
    return {card: hub_id for card, hub_id in known.items() if hub_id in present[card.kind]}


@dataclass(frozen=True, slots=True)
class _Check:
    """Which of these are in the hub."""

    kind: CardKind
    ids: tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Search:
    """A card that is ours to find.

    `keys` keep others away who look for whom has the same phone or address; `came` is the hub's id, or what was in
    the way.
    """

    card: SourceCard
    name: str
    claim: Claim
    keys: list[Claim] = field(default_factory=list)
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
        self._ledger = Ledger(ports.store, ports.clock)
        self._source = source
        self._hub = hub
        self._matches = matches

    def known(self, cards: Sequence[SourceCard]) -> dict[SourceCard, int]:
        """Return the hub's ids of those that were found or made before; they may be gone there since."""
        effects = self._ports.parallel(self._ledger.find, [self._name(card) for card in cards])
        found = {card: _known(effect) for card, effect in zip(cards, effects, strict=True) if effect and effect.settled}
        return {card: hub_id for card, hub_id in found.items() if isinstance(hub_id, int)}

    @staticmethod
    def checks(known: Mapping[SourceCard, int]) -> dict[Any, Operation[list[Item]]]:
        """Return what asks the hub which of these it has; `still_there` reads the answers."""
        checks = [
            _Check(kind, page)
            for kind in _TYPES
            for page in batched(sorted({hub_id for card, hub_id in known.items() if card.kind == kind}), PAGE)
        ]
        return {check: items.present(_TYPES[check.kind], check.ids) for check in checks}

    def found_or_created(
        self, cards: Sequence[SourceCard], known: Mapping[SourceCard, int], *, lease: int
    ) -> dict[SourceCard, int | Exception]:
        """Return the hub's id of each, or what was in the way: an Outcome, Gone, or what the ledger raises.

        Args:
            cards: the source's, each once.
            known: those that are in the hub for sure.
            lease: seconds for which the ledger lets us alone with the others.
        """
        others = [card for card in cards if card not in known]
        claims = self._ports.parallel(partial(self._claim, lease), others)
        found = dict(known) | {
            card: _known(claim) for card, claim in zip(others, claims, strict=True) if not isinstance(claim, Claim)
        }
        ours = [
            _Search(card, self._name(card), claim)
            for card, claim in zip(others, claims, strict=True)
            if isinstance(claim, Claim)
        ]
        for step in (self._read, partial(self._take_keys, lease=lease), self._look_up, self._create):
            going = [search for search in ours if search.came is None]
            try:
                step(going)
            except Exception as failure:  # noqa: BLE001 (the cards are to be given back, whatever it is)
                for search in going:
                    search.came = failure if search.came is None else search.came
        self._ports.parallel(partial(_end, int(self._hub.now())), ours)
        return found | {search.card: search.came for search in ours if search.came is not None}

    def _claim(self, lease: int, card: SourceCard) -> Claim | Effect | Exception:
        try:
            claim = self._ledger.claim(self._name(card), "", lease=lease)
            if isinstance(claim, Claim) or claim.state is State.REJECTED:
                return claim
            # It was found before, and is not there any more.
            return self._ledger.reopen(self._name(card), lease=lease)
        except Exception as error:  # noqa: BLE001 (it is this card's alone)
            return error

    def _name(self, card: SourceCard) -> str:
        return f"bitrix24.card#{self._hub.name}#{self._source.name}#{card.kind}#{card.id}"

    def _read(self, searches: Sequence[_Search]) -> None:
        answers = self._source.do_all({search: items.get(search.kind, search.card.id) for search in searches})
        for search, answer in answers.items():
            if isinstance(answer, Refused) and answer.reason == "not_found":
                search.came = Gone()
            elif isinstance(answer, Outcome):
                search.came = answer
            else:
                fm = answer.get("fm")
                parts = fm.values() if isinstance(fm, dict) else fm if isinstance(fm, list) else ()
                search.item = {
                    **answer,
                    "assignedById": user_of(answer),
                    "fm": [part for part in parts if isinstance(part, dict)],
                }

    def _take_keys(self, searches: Sequence[_Search], *, lease: int) -> None:
        """Of those who share a phone or an address let one be looked for; the others find what came of it then."""
        self._ports.parallel(partial(self._take_keys_of, lease), searches)

    def _take_keys_of(self, lease: int, search: _Search) -> None:
        now = self._hub.now()
        try:
            for name in self._keys(search):
                # Longer than a request of ours can be under way, should we die.
                key = self._ledger.turn(name, lease=lease + int(APPEARS_WITHIN))
                search.keys.append(key)
                notes = key.effect.notes or {}
                if notes.get("card") != search.name and (wait := notes.get("until", 0) - now) > 0:
                    search.came = NotExecuted("card_may_still_appear", retry_after=wait)
                    return
        except Busy:
            search.came = NotExecuted("card_busy", retry_after=_BUSY)
        except Exception as error:  # noqa: BLE001 (it is this card's alone)
            search.came = error

    def _keys(self, search: _Search) -> list[str]:
        kind, item = search.card.kind, search.item
        phones = ("".join(filter(str.isdigit, phone)) for phone in communications(item, "PHONE"))
        values = {f"PHONE#{digits}" for digits in phones if digits}
        values |= {f"EMAIL#{address.casefold()}" for address in communications(item, "EMAIL")}
        digests = sorted(hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest() for value in values)
        return [f"bitrix24.person#{self._hub.name}#{kind}#{digest}" for digest in digests]

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
                search.came = hits[0]["id"] if isinstance(hits[0], dict) else hits[0]
            elif search.claim.in_doubt and (wait := self._may_appear(search.claim)) > 0:
                search.came = NotExecuted("card_may_still_appear", retry_after=wait)

    def _lookups(self, search: _Search) -> dict[str, Operation[Any]]:
        lookups: dict[str, Operation[Any]] = {}
        for way in _COMMUNICATIONS:
            if values := communications(search.item, way)[:MOST_VALUES]:
                lookups[way] = items.find_by_communication(way, values, _ENTITIES[search.card.kind])
        if search.claim.in_doubt or not lookups:
            lookups["marker"] = self._by_marker(search)
        return lookups

    def _create(self, searches: Sequence[_Search]) -> None:
        self._matches.learn_users(search.item["assignedById"] for search in searches if search.item["assignedById"])
        self._ports.parallel(partial(_announce, int(self._hub.now())), [each for each in searches if each.came is None])
        additions = {search: items.add(search.kind, self._fields(search)) for search in searches if search.came is None}
        answers = self._hub.do_all(additions, made=self._made)
        for search, answer in answers.items():
            search.came = answer if isinstance(answer, Outcome) else answer["id"]

    def _made(self, searches: Sequence[_Search]) -> dict[_Search, Item | Outcome]:
        found = self._hub.do_all({search: self._by_marker(search) for search in searches})
        return {each: hit if isinstance(hit, Outcome) else hit[0] for each, hit in found.items() if hit}

    def _by_marker(self, search: _Search) -> Operation[list[Item]]:
        marked = self._marker(search)
        return items.find_by_origin(search.kind, marked["originatorId"], marked["originId"])

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


def _known(claim: Effect | Exception) -> int | Exception:
    match claim:
        case Effect(result={"id": int(hub_id)}):
            return hub_id
        case Effect():
            return Gone()
        case Busy():
            return NotExecuted("card_busy", retry_after=_BUSY)
        case Exception() as error:
            return error


def _announce(sent_at: int, search: _Search) -> None:
    try:
        search.claim.sent({"sent_at": sent_at})
    except Exception as error:  # noqa: BLE001 (it is this card's alone)
        search.came = error


def _end(now: int, search: _Search) -> None:
    """Write into the ledger what came of it."""
    try:
        in_doubt = not isinstance(search.came, int | NotExecuted | Rejected)
        for key in search.keys:
            if in_doubt:
                key.sent({"card": search.name, "until": now + int(APPEARS_WITHIN)})
            key.release()
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
