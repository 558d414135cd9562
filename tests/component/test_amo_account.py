"""An amoCRM account as the workers have it: tokens that work, names of ids, hooks that stay on."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from amo_webhook import account, authorize, upkeep
from amo_webhook.account import AmoAccount, amo_account, amo_key
from amo_webhook.subscription import wanted_events
from crm_relay.amocrm.oauth import App, TokenPair, exchange_code
from crm_relay.amocrm.resources import LEADS, account_info
from crm_relay.delivery.account import PAUSE, pause_key
from crm_relay.delivery.runtime import Runtime, install
from crm_relay.delivery.tokens import SharedToken, token_key
from crm_relay.http_client import Exchange, HttpClient, Request, Response
from crm_relay.outcomes import Blocked, NotConfigured, NotExecuted, Outcome, Unauthorized, Unreachable
from crm_relay.settings import AmoCrmAccount as AccountSettings
from crm_relay.settings import AmoCrmNotes, AmoCrmSecrets, AmoCrmSettings, Secrets
from tests.canaries import MARK
from tests.gateway import Context
from tests.relay import RELAY_TOML, Relay
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, MemoryTransport
from workbench.sandboxes.amocrm.account import USERS as PEOPLE
from workbench.sandboxes.faults import Forbidden, Html, RateLimited, Replaced, Reset
from workbench.sandboxes.faults import Unauthorized as Unauthorised

HOST, MOVED, API_URL = "example.amocrm.ru", "moved.amocrm.ru", "https://relay.test"
HOOK_TOKEN = f"{MARK}hook-token"
HOOK_URL = f"{API_URL}/amo/{HOOK_TOKEN}"
APP = App("client", f"{MARK}client-secret", f"{API_URL}/amo/oauth")
DAY = 86_400


class Bench:
    """An account `main` of amoCRM that a relay is connected to; `secrets` and `settings` are there to be replaced."""

    def __init__(self, relay: Relay, patch: pytest.MonkeyPatch) -> None:
        self.relay = relay
        self.clock = relay.clock
        ours = Integration(
            client_id=APP.client_id,
            client_secret=APP.client_secret,
            redirect_uri=APP.redirect_uri,
            user_id=PEOPLE[0].id,
        )
        many = 1_000_000
        crm_account = AmoCrmAccount(integrations=(ours,), requests_per_second=many, requests_per_second_of_all=many)
        self.crm = AmoCrmSandbox(crm_account, clock=self.clock.time, random=Random(7))
        self.hosts = [HOST, MOVED, "api-b.amocrm.ru", "www.amocrm.ru"]
        transport = MemoryTransport(dict.fromkeys(self.hosts, self.crm), self.clock.sleep)
        http = HttpClient(transport, monotonic=self.clock.time, response_limit=account._RESPONSE_LIMIT)
        for module in (account, authorize):
            patch.setattr(module, "http_client", lambda: http)
        self.settings = AccountSettings(account_id=crm_account.id, host=HOST, requests_per_second=50)
        self.secrets = AmoCrmSecrets(HOOK_TOKEN, "", APP.client_id, APP.client_secret, APP.redirect_uri)
        self.http = http

    @property
    def ports(self) -> Any:
        return self.relay._runtimes["leads"].ports

    def runtime(self) -> Runtime:
        """A new process's."""
        settings = msgspec.structs.replace(self.relay.settings, amocrm=AmoCrmSettings({"main": self.settings}))
        return Runtime(self.ports, settings, lambda: Secrets(amocrm={"main": self.secrets}))

    def worker(self) -> AmoAccount:
        """The account as a new process has it."""
        return amo_account(self.runtime(), "main")

    def with_long_lived_token(self, days: int = 365) -> str:
        token = self.crm.long_lived_token("client", days=days)
        self.secrets = AmoCrmSecrets(HOOK_TOKEN, token)
        return token

    def authorized(self) -> TokenPair:
        """Somebody has agreed, and the pair is stored."""
        pair = self.http.run(exchange_code(APP, HOST, self.crm.authorize("client"), now=self.clock.now))
        SharedToken(self.ports, amo_key("main")).write(asdict(pair))
        return pair

    @property
    def stored(self) -> Any:
        """The pair in the table."""
        return self.relay.items(token_key(amo_key("main")))[token_key(amo_key("main"))]["pair"]

    @property
    def paused(self) -> bool:
        pause = self.relay.items(pause_key(amo_key("main"))).get(pause_key(amo_key("main")), {"until": 0})
        return bool(pause["until"] > self.clock.now)

    def query_of(self, url: str) -> dict[str, str]:
        """Open a page of amoCRM as a browser does, and return the query of the address that it leads back to."""

        def visit() -> Exchange[Response]:
            return (yield Request("GET", url, headers={}))

        return dict(parse_qsl(urlsplit(self.http.run(visit()).headers["location"]).query))

    def asked(self, what: str = "") -> int:
        """How many requests with `what` in their path have reached amoCRM."""
        return sum(what in received.request.path for received in self.crm.received)

    def invoke(self, handler: Callable[[Any, Any], Any], event: Any, *, seconds: float = 300) -> Any:
        install(self.runtime())
        return handler(event, Context(self.clock.time, self.clock.time() + seconds, "amo"))

    def told(self, message: str) -> list[dict[str, Any]]:
        """The log lines with this message."""
        return [line for line in self.relay.logs if line["message"] == message]


@pytest.fixture
def bench(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("TABLE_NAME", "table")
    monkeypatch.setenv("RELAY_CONFIG", str(RELAY_TOML))
    monkeypatch.setenv("API_URL", API_URL)
    return Bench(relay, monkeypatch)


def look(worker: AmoAccount) -> int:
    """Ask for the account, as an operation like any other."""
    return int(worker.run(lambda access: account_info(access, now=worker.now()))["id"])


def outcome(worker: AmoAccount) -> Outcome:
    """What comes of asking."""
    with pytest.raises(Outcome) as caught:
        look(worker)
    return caught.value


# Tokens


def test_a_long_lived_token_goes_before_everything_else(bench: Bench) -> None:
    """Nothing is refreshed, and the table has no pair."""
    bench.with_long_lived_token()
    assert look(bench.worker()) == bench.crm.account.id
    assert bench.asked("oauth2") == 0
    assert not bench.relay.items("token#")


def test_a_pair_is_used_as_long_as_it_is_good_and_refreshed_in_time(bench: Bench) -> None:
    """Five minutes before its end, once for all workers."""
    first = bench.authorized()
    worker = bench.worker()
    bench.clock.now = first.expires_at - 301
    assert look(worker)
    assert bench.asked("access_token") == 1
    bench.clock.now = first.expires_at - 299
    assert look(worker)
    assert look(bench.worker())
    assert bench.asked("access_token") == 2
    assert bench.stored["access_token"] != first.access_token


def test_a_token_that_amocrm_does_not_take_any_more_is_refreshed_once(bench: Bench) -> None:
    """D15: 401 means a refresh first; that alone is no reason to pause the account."""
    bench.authorized()
    bench.crm.faults.add(Unauthorised(path="/api/v4/account"))
    assert look(bench.worker())
    assert bench.asked("access_token") == 2
    assert not bench.paused


def test_c29_fifty_workers_at_once_make_one_refresh_call(bench: Bench) -> None:
    """C29, for amoCRM: over threads, each worker a process of its own; who finds another refreshing waits."""
    pair = bench.authorized()
    bench.clock.now = pair.expires_at + 1
    start = threading.Barrier(50)
    done = []

    def work() -> None:
        worker = bench.worker()
        start.wait()
        for _ in range(10_000):
            try:
                done.append(look(worker))
            except NotExecuted:  # the message would come again
                continue
            return

    with ThreadPoolExecutor(50) as pool:
        for future in [pool.submit(work) for _ in range(50)]:
            future.result()
    assert done == [bench.crm.account.id] * 50
    assert bench.asked("access_token") == 2, "the first pair's and one refresh"


def test_while_another_worker_refreshes_a_pair_that_still_works_is_used(bench: Bench) -> None:
    """Nobody waits who need not; with a dead one the message waits, and the account is not paused for it."""
    pair = bench.authorized()
    item = bench.relay.store.get(token_key(amo_key("main")))
    assert item is not None
    bench.relay.store.put(item.key, {**item.attributes, "lease_until": pair.expires_at + 60}, replaces=item)
    bench.clock.now = pair.expires_at - 10
    assert look(bench.worker())
    bench.clock.now = pair.expires_at + 10
    asked = bench.asked()
    assert str(outcome(bench.worker())) == "token_being_refreshed"
    assert bench.asked() == asked
    assert not bench.paused


def test_a_refresh_whose_answer_got_lost_is_asked_for_again_with_the_old_token(bench: Bench) -> None:
    """AmoCRM had made a new pair, which nobody knows; the old refresh token is good until a new pair is used."""
    pair = bench.authorized()
    bench.clock.now = pair.expires_at + 1
    bench.crm.faults.add(Reset(path="/oauth2/access_token", when="after"))
    assert look(bench.worker())
    assert bench.asked("access_token") == 3


def test_what_is_never_answered_costs_the_message_nothing(bench: Bench) -> None:
    """Both answers got lost: nothing of the message's own work has happened, and it can simply come again."""
    pair = bench.authorized()
    bench.clock.now = pair.expires_at + 1
    bench.crm.faults.add(Reset(path="/oauth2/access_token", when="after", times=None))
    assert type(outcome(bench.worker())) is Unreachable
    bench.crm.faults.clear()
    assert look(bench.worker())


@pytest.mark.parametrize("age", [0, DAY], ids=["refused", "run out"])
def test_d15_a_revoked_pair_pauses_the_account_for_all_workers_and_calls_an_operator(bench: Bench, age: int) -> None:
    """D15: and nobody asks again until the pause is over, not even for a token."""
    bench.authorized()
    bench.clock.now += age
    bench.crm.tokens.revoke()
    worker = bench.worker()
    assert type(outcome(worker)) is Unauthorized
    asked = bench.asked()
    assert bench.paused
    assert [line["account"] for line in bench.told("account paused")] == ["amocrm#main"]
    for other in (worker, bench.worker()):
        refused = outcome(other)
        assert (type(refused), str(refused)) == (NotExecuted, "account_paused")
    assert bench.asked() == asked
    assert bench.stored, "who authorizes again need not hurry"
    bench.clock.now += PAUSE + 1
    assert type(outcome(bench.worker())) is Unauthorized


def test_d15_a_long_lived_token_that_was_revoked_pauses_too(bench: Bench) -> None:
    """D15: there is nothing to refresh."""
    bench.with_long_lived_token()
    bench.crm.tokens.revoke()
    assert type(outcome(bench.worker())) is Unauthorized
    assert bench.paused
    assert bench.asked("access_token") == 0


def test_an_account_that_nobody_authorized_asks_nothing(bench: Bench) -> None:
    """It waits for somebody to do so, and says so."""
    assert str(outcome(bench.worker())) == "not_authorized"
    assert bench.paused
    assert bench.asked() == 0


@pytest.mark.parametrize(
    "secrets", [AmoCrmSecrets(HOOK_TOKEN), AmoCrmSecrets(HOOK_TOKEN, "", APP.client_id, APP.client_secret)]
)
def test_without_a_token_or_a_whole_integration_nothing_is_configured(bench: Bench, secrets: AmoCrmSecrets) -> None:
    """That is for whoever fills the secret, not for whoever authorizes."""
    bench.secrets = secrets
    with pytest.raises(NotConfigured):
        look(bench.worker())
    with pytest.raises(NotConfigured):
        amo_account(bench.runtime(), "other")
    assert not bench.paused


def test_an_account_that_moved_is_found_and_stays_found(bench: Bench) -> None:
    """D18: at its new host, which is stored with the pair."""
    bench.authorized()
    bench.crm.move_to(MOVED)
    assert look(bench.worker()) == bench.crm.account.id
    assert bench.stored["host"] == MOVED
    asked = bench.asked()
    assert look(bench.worker())
    assert bench.asked() == asked + 1


def test_a_blocked_account_is_left_alone(bench: Bench) -> None:
    """403 with a page, from the token endpoint too."""
    pair = bench.authorized()
    bench.clock.now = pair.expires_at + 1
    bench.crm.switches.blocked = True
    assert type(outcome(bench.worker())) is Blocked
    assert bench.paused


def test_every_page_of_a_list_takes_its_own_slot(bench: Bench) -> None:
    """600 leads are three requests, and three slots of the budget."""
    bench.with_long_lived_token()
    made = [lead.id for lead in bench.crm.add("leads", name="Окна", copies=600)]
    bench.settings = msgspec.structs.replace(bench.settings, requests_per_second=1.0)
    began = bench.clock.now
    assert [lead["id"] for lead in bench.worker().each(LEADS)] == made
    assert bench.clock.now - began >= 2


# Names


def test_names_are_read_once_for_all_workers_and_again_after_an_hour(bench: Bench) -> None:
    """Three requests, however many batches there are."""
    bench.with_long_lived_token()
    names = bench.worker().names()
    assert names.users == {user.id: user.name for user in PEOPLE}
    assert names.pipelines[9621010] == "Воронка"
    assert names.stages[9621010, 76789230] == "Первичный контакт"
    assert names.moment(1_760_000_000) == "09.10.2025 11:53:20"
    assert bench.worker().names() == names
    assert bench.asked() == 3
    bench.clock.now += 3601
    bench.worker().names()
    assert bench.asked() == 6


def test_names_that_another_worker_reads_are_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers start at once, amoCRM is asked by one of them."""
    bench.with_long_lived_token()
    waits = []

    def other_worker_is_done(seconds: float) -> None:
        waits.append(seconds)
        bench.relay.store.items = done

    names = bench.worker().names()
    done = dict(bench.relay.store.items)
    key = f"names#{amo_key('main')}"
    known = done[key]
    being_read = {**known.attributes, "read_at": 0, "reading_until": int(bench.clock.now) + 3}
    bench.relay.store.items = {**done, key: replace(known, attributes=being_read)}
    monkeypatch.setattr(bench.clock, "sleep", other_worker_is_done)
    assert bench.worker().names() == names
    assert len(waits) == 1
    assert bench.asked() == 3


def test_names_that_another_worker_does_not_come_back_with_are_read(bench: Bench) -> None:
    """Who died while he read them holds nobody up for more than seconds."""
    bench.with_long_lived_token()
    began = bench.clock.now
    bench.ports.store.put(
        f"names#{amo_key('main')}", {**account._NO_NAMES, "reading_until": int(began) + 3}, replaces=None
    )
    assert bench.worker().names().users
    assert bench.asked() == 3
    assert 2 < bench.clock.now - began < 5


def test_names_that_an_older_version_has_kept_are_read_again(bench: Bench) -> None:
    """It knows nothing of reading for all; a new stage costs no note."""
    bench.with_long_lived_token()
    names = bench.worker().names()
    key = f"names#{amo_key('main')}"
    item = bench.relay.store.items[key]
    older = {name: value for name, value in item.attributes.items() if name != "reading_until"}
    bench.relay.store.items[key] = replace(item, attributes=older)
    bench.clock.now += 301
    assert bench.worker().names([{"pipeline_id": 9621010, "status_id": 1}]) == names
    assert bench.asked() == 6


@pytest.mark.parametrize("new", [{"status_id": 1}, {"pipeline_id": 1}, {"responsible_user_id": 1}], ids=repr)
def test_an_id_that_is_new_has_names_read_again_but_not_every_time(bench: Bench, new: dict[str, int]) -> None:
    """A stage that was made a minute ago; and one that is gone is not asked for again and again."""
    bench.with_long_lived_token()
    known = {"responsible_user_id": PEOPLE[0].id, "pipeline_id": 9621010, "status_id": 76789230}
    worker = bench.worker()
    worker.names([known | new])
    bench.clock.now += 301
    worker.names([known, {}])
    assert bench.asked() == 3
    worker.names([known, known | new])
    worker.names([known | new])
    assert bench.asked() == 6


def test_what_amocrm_refuses_to_tell_has_no_names_and_stops_nothing(bench: Bench) -> None:
    """Users, for a token without an administrator's rights."""
    bench.with_long_lived_token()
    bench.crm.faults.add(Forbidden(path="/api/v4/users"))
    names = bench.worker().names()
    assert names.users == {}
    assert names.pipelines
    assert not bench.paused


@pytest.mark.parametrize("zone", ["Nowhere/Land", "../etc", ""])
def test_a_time_zone_that_nobody_knows_is_utc(bench: Bench, zone: str) -> None:
    bench.with_long_lived_token()
    text = json.dumps({"_embedded": {"datetime_settings": {"timezone": zone}}})
    bench.crm.faults.add(Replaced(path="/api/v4/account", text=text))
    assert bench.worker().names().moment(0) == "01.01.1970 00:00:00"


# The schedule


def upkeep_of(bench: Bench, *, seconds: float = 300) -> Any:
    return bench.invoke(upkeep.handler, {}, seconds=seconds)


def ready(bench: Bench) -> None:
    """An account with a token and a hook as it must be."""
    bench.with_long_lived_token()
    bench.crm.subscribe(HOOK_URL, *wanted_events(AmoCrmNotes()))


def test_an_account_in_order_is_let_be(bench: Bench) -> None:
    ready(bench)
    assert upkeep_of(bench) == {"main": "in_order"}
    assert bench.asked() == 1
    assert bench.relay.metrics["AttentionNeeded"] == 0


def test_b24_a_hook_that_amocrm_switched_off_is_switched_on_and_reported(bench: Bench) -> None:
    """B24."""
    ready(bench)
    bench.crm.hooks.subscriptions[HOOK_URL].manner.stopped = True
    assert upkeep_of(bench) == {"main": "repaired"}
    assert not bench.crm.hooks.subscriptions[HOOK_URL].disabled
    assert [line["fault"] for line in bench.told("hook repaired")] == ["switched_off"]
    assert bench.relay.metrics["AttentionNeeded"] == 1
    assert HOOK_TOKEN not in bench.relay.output
    assert upkeep_of(bench) == {"main": "in_order"}


def test_a_hook_that_is_not_there_is_subscribed(bench: Bench) -> None:
    """To what gets notes, and nothing else."""
    bench.with_long_lived_token()
    bench.settings = msgspec.structs.replace(bench.settings, notes=AmoCrmNotes(("add", "status"), (), ()))
    assert upkeep_of(bench) == {"main": "repaired"}
    assert bench.crm.hooks.subscriptions[HOOK_URL].settings == ["add_lead", "status_lead"]


def test_a_hook_that_lacks_events_gets_them_beside_those_that_it_has(bench: Bench) -> None:
    """With the slash at its end that somebody gave it."""
    bench.with_long_lived_token()
    bench.crm.subscribe(f"{HOOK_URL}/", "add_task", "add_lead")
    assert upkeep_of(bench) == {"main": "repaired"}
    assert list(bench.crm.hooks.subscriptions) == [f"{HOOK_URL}/"]
    settings = set(bench.crm.hooks.subscriptions[f"{HOOK_URL}/"].settings)
    assert settings == {"add_task"} | wanted_events(AmoCrmNotes())


def test_an_account_without_notes_needs_no_hook(bench: Bench) -> None:
    bench.with_long_lived_token()
    bench.settings = msgspec.structs.replace(bench.settings, notes=AmoCrmNotes((), (), ()))
    assert upkeep_of(bench) == {"main": "in_order"}
    assert not bench.crm.hooks.subscriptions


def test_where_hooks_may_not_be_read_somebody_is_told_once_a_day(bench: Bench) -> None:
    """They are for administrators; what comes is noted all the same."""
    ready(bench)
    bench.crm.faults.add(Forbidden(path="/api/v4/webhooks", times=None))
    for _ in range(5):
        assert upkeep_of(bench) == {"main": "failed"}
        bench.clock.now += 3600
    assert len(bench.told("hooks cannot be looked after")) == 1
    assert not bench.paused
    bench.clock.now += DAY
    upkeep_of(bench)
    assert len(bench.told("hooks cannot be looked after")) == 2


def test_an_idle_integration_keeps_its_tokens_for_a_year(bench: Bench) -> None:
    """Without the schedule they would be dead after three months."""
    bench.authorized()
    bench.crm.subscribe(HOOK_URL, *wanted_events(AmoCrmNotes()))
    refreshed = 0
    for _ in range(365):
        bench.clock.now += DAY
        upkeep_of(bench)
    refreshed = bench.asked("access_token")
    assert refreshed == 366
    assert look(bench.worker())


def test_a_pair_is_refreshed_daily_not_hourly(bench: Bench) -> None:
    bench.authorized()
    for _ in range(48):
        upkeep_of(bench)
        bench.clock.now += 3600
    assert bench.asked("access_token") == 1 + 2


def test_a_long_lived_token_that_ends_soon_is_told_of_daily(bench: Bench) -> None:
    """Nobody can refresh it, so somebody has to make a new one; two weeks are time enough."""
    bench.with_long_lived_token(days=16)
    bench.crm.subscribe(HOOK_URL, *wanted_events(AmoCrmNotes()))
    days = []
    for _ in range(5 * 24):
        upkeep_of(bench)
        bench.clock.now += 3600
        days = [line["days_left"] for line in bench.told("long-lived token ends soon")]
    assert days == [13, 12, 11]


def test_an_account_that_moved_is_told(bench: Bench) -> None:
    """Its hooks name another subdomain, so relay.toml must follow."""
    bench.authorized()
    bench.crm.move_to(MOVED)
    bench.crm.tokens._access.clear()
    upkeep_of(bench)
    upkeep_of(bench)
    upkeep_of(bench)
    assert [line["host"] for line in bench.told("account moved, relay.toml has its old host")] == [MOVED]


def test_one_account_does_not_cost_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the secret does not know yet: the next one is looked after all the same."""
    ready(bench)
    good = bench.settings
    runtime = bench.runtime()
    accounts = {"new": good, "main": good}
    settings = msgspec.structs.replace(runtime.settings, amocrm=AmoCrmSettings(accounts))
    both = replace(runtime, settings=settings)
    monkeypatch.setattr(bench, "runtime", lambda: both)
    assert upkeep_of(bench) == {"new": "failed", "main": "in_order"}
    assert [line["account"] for line in bench.told("account not configured")] == ["new"]


def test_an_account_without_an_address_for_its_hooks_subscribes_none(bench: Bench) -> None:
    """Half a secret: what is there of it would lead hooks to where nobody knows them."""
    bench.with_long_lived_token()
    bench.secrets = msgspec.structs.replace(bench.secrets, hook_token="")
    assert upkeep_of(bench) == {"main": "failed"}
    assert bench.told("account not configured")
    assert not bench.crm.hooks.subscriptions


def test_with_too_little_time_left_nothing_is_begun(bench: Bench) -> None:
    """And it is told, since it would be so every hour."""
    ready(bench)
    assert upkeep_of(bench, seconds=60) == {}
    assert bench.told("no time to look after all accounts")


@pytest.mark.parametrize("fault", [RateLimited(retry_after=7), Html()], ids=repr)
def test_what_amocrm_has_against_it_now_is_for_the_next_hour(bench: Bench, fault: Any) -> None:
    ready(bench)
    bench.crm.faults.add(fault)
    assert upkeep_of(bench) == {"main": "failed"}
    assert bench.relay.metrics["UnhandledError"] == 0


def test_a_table_that_is_down_is_for_the_next_hour(bench: Bench) -> None:
    ready(bench)
    bench.relay.fail("store")
    assert upkeep_of(bench) == {"main": "failed"}
    bench.relay.mend()
    assert upkeep_of(bench) == {"main": "in_order"}
    assert bench.relay.metrics["UnhandledError"] == 0


def test_a_fault_of_ours_is_counted_and_costs_one_account(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lambda would stop at the first account, every hour."""
    ready(bench)

    def broken(*_: object) -> str:
        raise ValueError("+380501234567")

    monkeypatch.setattr(upkeep, "_keep_hook", broken)
    assert upkeep_of(bench) == {"main": "failed"}
    assert bench.relay.metrics["UnhandledError"] == 1
    assert "+380501234567" not in bench.relay.output
