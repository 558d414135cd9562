"""How the amoCRM client carries operations out: rate, repeats, tokens. Driven by hand, without any network."""

import threading
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from crm_relay.amocrm.client import Problem
from crm_relay.amocrm.oauth import LONGEST_REFRESH, App, TokenPair
from crm_relay.amocrm.session import (
    LEASE,
    Access,
    Act,
    Limiter,
    LongLivedToken,
    MemoryTokens,
    Progress,
    Session,
    StoredTokens,
    Terms,
    Work,
)
from crm_relay.http_client import Request, Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.exchanges import says
from tests.relay import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

APP = App("client", "secret", "https://relay.invalid/amo")
FOREVER = LongLivedToken("example.amocrm.ru", "the-token")
PROBLEM = {"title": "Bad Request", "detail": "name: Оля", "status": 400}


class Hand:
    """A session whose requests are answered by hand, in virtual time."""

    def __init__(self, *answers: Response | Outcome, access: Access = FOREVER, terms: Terms | None = None) -> None:
        self.clock = Clock()
        self.answers = list(answers)
        self.requests: list[Request] = []
        self.times: list[float] = []
        self.late: Callable[[], Response] | None = None
        self.session = Session(
            access,
            Limiter(monotonic=self.clock.time),
            terms or Terms(),
            self.clock.sleep,
            self.clock.time,
        )

    def run[T](self, work: Work[T]) -> T:
        progress = Progress(work)
        while progress.effect is not None:
            if isinstance(progress.effect, Act):
                try:
                    done = progress.effect.do()
                except NotExecuted as outcome:
                    progress.throw(outcome)
                else:
                    progress.send(done)
                continue
            self.requests.append(progress.effect)
            self.times.append(self.clock.now)
            late, self.late = self.late, None
            answer = late() if late else self.answers.pop(0)
            if isinstance(answer, Outcome):
                progress.throw(answer)
            else:
                progress.send(answer)
        return progress.result

    def get(self) -> dict[str, Any]:
        return self.run(self.session.call("GET", "api/v4/leads"))

    def post(self) -> dict[str, Any]:
        return self.run(self.session.call("POST", "api/v4/leads", body=[{"name": "Оля"}]))

    def tokens(self) -> list[str]:
        return [request.headers.get("Authorization", "").removeprefix("Bearer ") for request in self.requests]


def pair(number: int = 1, expires_at: int = 2_000_000_000) -> TokenPair:
    return TokenPair("example.amocrm.ru", f"access-{number}", f"refresh-{number}", expires_at)


def granted(number: int) -> Response:
    return says(200, {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": 86400})


# Rate and repeats


def test_requests_keep_apart() -> None:
    """A little less than seven a second, evenly: no burst, and no eighth at the edge of a second."""
    hand = Hand(*[says(200, {"id": 1})] * 15)
    start = hand.clock.now
    for _ in range(15):
        hand.get()
    assert [round(time - start, 3) for time in hand.times] == [round(number * 1.02 / 7, 3) for number in range(15)]


def test_threads_share_the_limiter() -> None:
    """Each request is taken once."""
    limiter, waits = Limiter(10, monotonic=lambda: 0.0), []
    threads = [threading.Thread(target=lambda: waits.append(limiter.take())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(round(wait, 3) for wait in waits) == [round(number * 1.02 / 10, 3) for number in range(20)]


@pytest.mark.parametrize(
    "failure", [OutcomeUnknown("reset"), Unreachable("ConnectError"), says(500, {}), says(502, b"")]
)
def test_a_read_is_repeated(failure: Response | Outcome) -> None:
    """Whatever became of it, it changes nothing."""
    hand = Hand(failure, failure, says(200, {"id": 1}))
    assert hand.get() == {"id": 1}


@pytest.mark.parametrize("failure", [OutcomeUnknown("reset"), says(500, {}), says(504, b""), says(200, b"<html>")])
def test_a_write_that_may_have_run_is_not_repeated(failure: Response | Outcome) -> None:
    """Whoever called has to look."""
    hand = Hand(failure)
    with pytest.raises(OutcomeUnknown):
        hand.post()


@pytest.mark.parametrize("failure", [says(429, b"<html>"), says(429, {"retry_after": 3}), NotExecuted("x", 3)])
def test_a_write_that_was_not_executed_is_repeated(failure: Response | Outcome) -> None:
    """After the time that amoCRM wants, and nobody else asks meanwhile."""
    hand = Hand(failure, says(200, {"id": 1}))
    assert hand.post() == {"id": 1}
    assert hand.times[1] - hand.times[0] >= 3


def test_repeats_and_patience_end() -> None:
    """Then the failure is the caller's."""
    hand = Hand(*[Unreachable("ConnectError")] * 3, terms=Terms(repeats=2))
    with pytest.raises(Unreachable):
        hand.get()
    assert len(hand.requests) == 3
    with pytest.raises(NotExecuted):
        Hand(says(429, {"retry_after": 300})).get()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(says(403, b"<html>"), Blocked), (says(404, PROBLEM), Rejected), (says(504, b""), Unreachable)],
)
def test_what_a_repeat_cannot_help_is_not_repeated(answer: Response, outcome: type[Outcome]) -> None:
    """Blocked, refused, too much at once."""
    with pytest.raises(outcome):
        Hand(answer).get()


def test_a_pause_ends_without_a_burst() -> None:
    """Whoever waited through it goes on one after the other: amoCRM blocks those who insist.

    A client that acts as another user shares the pause.
    """
    hand = Hand()
    as_user = replace(hand.session, terms=Terms(context_user_id=7))
    sessions = [hand.session, as_user] * 10
    under_way = {number: Progress(one.call("GET", "api/v4/leads")) for number, one in enumerate(sessions)}
    wakes = dict.fromkeys(under_way, hand.clock.now)
    asleep: list[float] = []
    for one in sessions:
        one.sleep = asleep.append
    start = hand.clock.now
    times: list[float] = []
    answers: dict[int, Response] = {}
    while under_way:
        number = min(under_way, key=lambda one: wakes[one])
        hand.clock.now = max(hand.clock.now, wakes[number])
        progress = under_way[number]
        if isinstance(progress.effect, Act):
            progress.send(progress.effect.do())
            wakes[number] += asleep.pop() if asleep else 0.0
        elif number in answers:
            progress.send(answers.pop(number))
            wakes[number] = hand.clock.now
        elif isinstance(progress.effect, Request):
            answers[number] = says(200, {"id": 1}) if times else says(429, {"retry_after": 5})
            times.append(hand.clock.now)
            wakes[number] += 0.3
        else:
            del under_way[number]
    assert [round(time - start, 2) for time in times[:3]] == [0.0, 0.15, 0.29]
    assert times[3] >= start + 5.3, "somebody asked during the pause"
    assert len(times) == 21
    assert min(after - before for before, after in pairwise(times)) > 0.14


# What is sent and what is told


def test_requests_say_who_asks() -> None:
    """User agent, library, the user to act as; the deadline is the client's."""
    hand = Hand(says(200, {"id": 1}), terms=Terms(user_agent="Stock/2", context_user_id=7, deadline=40))
    hand.get()
    (request,) = hand.requests
    assert request.headers["User-Agent"].startswith("Stock/2 (crm-relay/")
    assert request.headers["X-Context-User-ID"] == "7"
    assert request.headers["X-Library-Version"]
    assert request.deadline == 40


def test_a_refusal_tells_what_happened() -> None:
    """What was asked and answered, with the id that support asks for; no token, and nobody's name in the message."""
    hand = Hand(says(400, PROBLEM, {"x-request-id": "r-1"}))
    with pytest.raises(Rejected) as caught:
        hand.post()
    problem = Problem.of(caught.value)
    assert problem is not None
    assert (problem.method, problem.path, problem.status) == ("POST", "/api/v4/leads", 400)
    assert (problem.title, problem.detail, problem.request_id) == ("Bad Request", "name: Оля", "r-1")
    assert problem.body == [{"name": "Оля"}]
    assert "the-token" not in repr(vars(problem))
    assert "Оля" not in f"{problem} {problem!r} {caught.value}"
    assert Problem.of(ValueError()) is None


def test_secrets_that_were_sent_are_not_told() -> None:
    """A user's password, a widget's token: what reports a problem must not pass them on."""
    hand = Hand(says(400, PROBLEM))
    body = [
        {
            "name": "Оля",
            "password": "p4ss",
            "settings": {"apiKey": "k3y", "oauth_token": ["t0ken"], "client": {"secret": 5}},
        }
    ]
    with pytest.raises(Rejected) as caught:
        hand.run(hand.session.call("POST", "api/v4/users", body=body))
    problem = Problem.of(caught.value)
    assert problem is not None
    assert problem.body == [
        {"name": "Оля", "password": "…", "settings": {"apiKey": "…", "oauth_token": "…", "client": {"secret": "…"}}}
    ]


def test_a_part_of_a_file_goes_to_amocrm_alone() -> None:
    """The token with it: an address elsewhere gets neither."""
    hand = Hand(says(200, {"uuid": "u"}))
    assert hand.run(hand.session.upload("https://drive-b.amocrm.ru/v1.0/upload/7?x=1", b"part", "text/plain"))
    (request,) = hand.requests
    assert (request.method, request.content) == ("POST", b"part")
    assert request.headers["Content-Type"] == "text/plain"
    for url in ("https://example.com/upload", "http://drive.amocrm.ru/upload", "https://a@drive.amocrm.ru/", "x"):
        with pytest.raises(Blocked):
            hand.run(hand.session.upload(url, b"part", "text/plain"))
    assert len(hand.requests) == 1


# Tokens


def test_a_pair_is_used_while_it_is_good() -> None:
    """With the integration's id."""
    hand = Hand(says(200, {"id": 1}), access=StoredTokens(APP, MemoryTokens(pair())))
    hand.get()
    assert hand.tokens() == ["access-1"]
    assert hand.requests[0].headers["X-Client-UUID"] == "client"


def test_a_pair_that_ends_is_refreshed_and_stored_before_it_is_used() -> None:
    """To use the new one kills the old one."""
    clock = Clock()
    store = MemoryTokens(pair(expires_at=int(clock.now) + 30), monotonic=clock.time)
    hand = Hand(granted(2), says(200, {"id": 1}), access=StoredTokens(APP, store))
    hand.get()
    assert store.pair is not None
    assert (store.pair.refresh_token, hand.requests[1].headers["Authorization"]) == ("refresh-2", "Bearer access-2")


def test_a_token_that_is_refused_is_refreshed_once() -> None:
    """A second refusal is the caller's."""
    hand = Hand(says(401, {}), granted(2), says(200, {"id": 1}), access=StoredTokens(APP, MemoryTokens(pair())))
    assert hand.post() == {"id": 1}
    hand = Hand(says(401, {}), granted(2), says(401, {}), access=StoredTokens(APP, MemoryTokens(pair())))
    with pytest.raises(Unauthorized):
        hand.get()


def test_somebody_elses_refresh_is_waited_for() -> None:
    """And its pair is used."""
    clock = Clock()
    store = MemoryTokens(pair(expires_at=0), monotonic=clock.time)
    hand = Hand(says(200, {"id": 1}), access=StoredTokens(APP, store))
    hand.clock = clock
    claim = store.claim(90)
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            assert store.write(pair(2), claim)
            store.release(claim)

    hand.session = replace(hand.session, sleep=sleep)
    hand.get()
    assert (hand.tokens(), len(waited)) == (["access-2"], 3)


def test_a_claim_that_nobody_gives_back_lapses() -> None:
    """Whoever died with it holds nobody up for ever; while it lasts, the request was not executed."""
    clock = Clock()
    store = MemoryTokens(pair(expires_at=0), monotonic=clock.time)
    store.claim(10_000)
    hand = Hand(access=StoredTokens(APP, store), terms=Terms(repeats=0))
    with pytest.raises(NotExecuted):
        hand.get()
    assert hand.clock.now - 1_760_000_000 >= LONGEST_REFRESH
    clock.sleep(10_001)
    assert store.claim(1)


def test_a_failed_refresh_gives_the_claim_back() -> None:
    """And the pair stays as it was."""
    store = MemoryTokens(pair(expires_at=0))
    hand = Hand(says(429, {"retry_after": 500}), access=StoredTokens(APP, store))
    with pytest.raises(NotExecuted):
        hand.get()
    assert store.pair == pair(expires_at=0)
    assert store.claim(1)


def test_a_claim_outlasts_the_longest_refresh() -> None:
    """Or the next one would begin while somebody is still at it."""
    assert LEASE > LONGEST_REFRESH


def test_who_was_away_for_too_long_writes_over_nothing_and_frees_nobody() -> None:
    """Its claim lapsed during its refresh and is another's, whose pair is the newer one."""
    clock = Clock()
    store = MemoryTokens(pair(expires_at=0), monotonic=clock.time)
    hand = Hand(says(200, {"id": 1}), access=StoredTokens(APP, store))
    hand.clock = clock
    heirs: list[object] = []

    def late() -> Response:
        clock.sleep(LEASE + 1)
        heirs.append(store.claim(LEASE))
        store.write(pair(3), heirs[0])
        return granted(2)

    hand.late = late
    hand.get()
    assert store.pair == pair(3)
    assert hand.tokens()[-1] == "access-3"
    assert store.claim(1) is None, "it freed the other one's claim"
    store.release(heirs[0])
    assert store.claim(1)


def test_many_at_once_refresh_once() -> None:
    """Each effect of one comes between those of all others."""
    access = StoredTokens(APP, MemoryTokens(pair(expires_at=0)))
    all_at_once = [Progress(access.account(1_760_000_000, lambda _: None, refused=None)) for _ in range(20)]
    refreshes = 0
    while under_way := [progress for progress in all_at_once if progress.effect is not None]:
        for progress in under_way:
            if isinstance(progress.effect, Act):
                progress.send(progress.effect.do())
            else:
                refreshes += 1
                progress.send(granted(2))
    assert {progress.result.access_token for progress in all_at_once} == {"access-2"}
    assert refreshes == 1


def test_a_pair_is_looked_at_again_under_the_claim() -> None:
    """Another one may have refreshed between our look and our claim; to ask with the old token would kill its pair."""
    access = StoredTokens(APP, MemoryTokens(pair(expires_at=0)))
    slow = Progress(access.account(1_760_000_000, lambda _: None, refused=None))
    assert isinstance(slow.effect, Act)
    slow.send(slow.effect.do())  # it has looked
    hand = Hand(granted(2), says(200, {"id": 1}), access=access)
    hand.get()
    while slow.effect is not None:
        assert isinstance(slow.effect, Act), "it refreshes too"
        slow.send(slow.effect.do())
    assert slow.result.access_token == "access-2"


def test_without_a_pair_somebody_has_to_authorize() -> None:
    """Nothing is sent."""
    with pytest.raises(Unauthorized):
        Hand(access=StoredTokens(APP, MemoryTokens())).get()


def test_a_long_lived_token_is_never_refreshed() -> None:
    """A refusal is its end; one that says that it is over is not sent."""
    hand = Hand(says(401, {}))
    with pytest.raises(Unauthorized):
        hand.get()
    hand = Hand(says(401, PROBLEM))
    with pytest.raises(Unauthorized, match="http_401") as caught:
        hand.get()
    assert Problem.of(caught.value)
    over = LongLivedToken("example.amocrm.ru", "x.eyJleHAiOjEwMDB9.x")
    assert over.expires_at == 1000
    with pytest.raises(Unauthorized):
        Hand(access=over).get()
    assert "eyJ" not in repr(over)


def test_files_are_where_the_account_says() -> None:
    """It is asked once."""
    hand = Hand(says(200, {"drive_url": "https://drive-b.amocrm.ru"}))
    assert [hand.run(hand.session.drive()) for _ in range(2)] == ["drive-b.amocrm.ru"] * 2


@pytest.mark.parametrize("answer", [{"id": 1}, {"id": 1, "drive_url": ""}, {"id": 1, "drive_url": None}])
def test_an_account_that_does_not_say_has_its_files_at_its_domains_drive(answer: dict[str, Any]) -> None:
    """Not at its own host, which knows nothing of files."""
    hand = Hand(says(200, answer), access=LongLivedToken("example.kommo.com", "the-token"))
    assert hand.run(hand.session.drive()) == "drive.kommo.com"


def test_a_shared_budget_can_take_the_limiters_place() -> None:
    """It may wait itself, or say that there is nothing to be had for a while."""

    class Shared:
        def __init__(self) -> None:
            self.left = 0
            self.paused = 0.0

        def take(self) -> float:
            if not self.left:
                self.left = 1
                raise NotExecuted("budget_exhausted", 9.0)
            seconds, self.paused = self.paused, 0.0
            return seconds

        def pause(self, seconds: float) -> None:
            self.paused = seconds

        def is_paused(self) -> bool:
            return self.paused > 0

    hand = Hand(says(200, {"id": 1}))
    hand.session = replace(hand.session, budget=Shared())
    start = hand.clock.now
    assert hand.get() == {"id": 1}
    assert hand.times == [start + 9]
