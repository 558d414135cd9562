"""The fault switches, without a transport: what each kind makes of an answer, and which requests it hits."""

import math
from random import Random

import pytest

from workbench.sandboxes.faults import (
    CodedError,
    CutShort,
    Drip,
    Fault,
    Faults,
    Forbidden,
    Html,
    Oversized,
    RateLimited,
    Redirect,
    Replaced,
    Reset,
    Scene,
    Slow,
    Timeout,
    Unauthorized,
)
from workbench.sandboxes.wire import Break, SandboxRequest, SandboxResponse, json_answer

NOW = 1_700_000_000.0
TRUE_ANSWER = json_answer(200, {"id": "7"})
POST = SandboxRequest("POST", "/api/v1/inbound/leads")


class Crm:
    """Counts how often its work is done."""

    def __init__(self) -> None:
        self.effects = 0

    def work(self) -> SandboxResponse:
        self.effects += 1
        return TRUE_ANSWER

    def struck_by(self, fault: Fault) -> SandboxResponse:
        return fault.strike(Scene(self.work, lambda status, code: json_answer(status, {"said": code}), NOW))


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.mark.parametrize("kind", [Timeout, Reset, Html, Replaced])
def test_a_fault_before_the_effect_prevents_it(crm: Crm, kind: type[Timeout | Reset | Html | Replaced]) -> None:
    """By default a fault that stands in for the answer strikes before the CRM's work is done."""
    crm.struck_by(kind())
    assert crm.effects == 0


@pytest.mark.parametrize("kind", [Timeout, Reset, Html, Replaced])
def test_a_fault_after_the_effect_hides_it(crm: Crm, kind: type[Timeout | Reset | Html | Replaced]) -> None:
    """The work is done once, and the caller hears the same as if it had not been."""
    assert crm.struck_by(kind(when="after")) == crm.struck_by(kind(when="before"))
    assert crm.effects == 1


@pytest.mark.parametrize("fault", [RateLimited(), CodedError(), Unauthorized(), Forbidden(), Redirect()])
def test_a_refusal_never_does_the_work(crm: Crm, fault: Fault) -> None:
    """What a CRM refuses with a code, or sends elsewhere, it has not done."""
    crm.struck_by(fault)
    assert crm.effects == 0


@pytest.mark.parametrize("fault", [Slow(), Drip(), CutShort(), Oversized(size=100)])
def test_a_distorted_answer_is_the_true_one(crm: Crm, fault: Fault) -> None:
    """Faults of delivery do the work once and keep status, headers and the beginning of the body."""
    answer = crm.struck_by(fault)
    assert crm.effects == 1
    assert (answer.status, answer.headers) == (TRUE_ANSWER.status, TRUE_ANSWER.headers)
    assert answer.body.startswith(TRUE_ANSWER.body)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (RateLimited(), 429, "rate_limited"),
        (RateLimited(code="QUERY_LIMIT_EXCEEDED"), 429, "QUERY_LIMIT_EXCEEDED"),
        (CodedError(), 503, "internal_error"),
        (CodedError(status=500, code="broken"), 500, "broken"),
        (Unauthorized(), 401, "unauthorized"),
        (Forbidden(), 403, "forbidden"),
    ],
)
def test_a_refusal_has_the_shape_of_its_crm(crm: Crm, fault: Fault, status: int, code: str) -> None:
    """The sandbox, not the fault, knows how its CRM words a refusal."""
    assert crm.struck_by(fault) == json_answer(status, {"said": code})


@pytest.mark.parametrize(
    ("fault", "header"),
    [
        (RateLimited(), None),
        (RateLimited(retry_after=7), "7"),
        (RateLimited(retry_after=0), "0"),
        (RateLimited(retry_after="-1"), "-1"),
        (RateLimited(retry_after="soon"), "soon"),
        (RateLimited(retry_after_date=30), "Tue, 14 Nov 2023 22:13:50 GMT"),
    ],
)
def test_retry_after_comes_in_every_form(crm: Crm, fault: Fault, header: str | None) -> None:
    """Seconds, junk, an HTTP date counted from the moment of the answer, or no header at all."""
    assert crm.struck_by(fault).headers.get("retry-after") == header


def test_a_timeout_never_answers(crm: Crm) -> None:
    """The answer is infinitely late, so the caller is told no status."""
    answer = crm.struck_by(Timeout())
    assert answer.delay == math.inf
    assert answer.told is None


def test_a_reset_tells_nothing(crm: Crm) -> None:
    """The connection breaks before the answer, so the caller is told no status."""
    answer = crm.struck_by(Reset())
    assert answer.breaks is Break.BEFORE_ANSWER
    assert answer.told is None


@pytest.mark.parametrize("status", [200, 502])
def test_html_carries_no_code(crm: Crm, status: int) -> None:
    """A page comes with any status and is labelled as one."""
    answer = crm.struck_by(Html(status=status))
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/html")
    assert b"<html>" in answer.body


def test_a_body_can_be_replaced(crm: Crm) -> None:
    """By default the JSON lacks an id; any other text can be had, JSON or not."""
    assert crm.struck_by(Replaced()).body == b"{}"
    answer = crm.struck_by(Replaced(status=201, text='{"id":'))
    assert (answer.status, answer.body) == (201, b'{"id":')


def test_a_redirect_points_elsewhere(crm: Crm) -> None:
    """A 3xx names the location that it was given."""
    answer = crm.struck_by(Redirect(status=307, location="https://other.invalid/x"))
    assert (answer.status, answer.headers) == (307, {"location": "https://other.invalid/x"})


def test_delivery_is_bent_as_ordered(crm: Crm) -> None:
    """Each fault of delivery sets its own manner and nothing else."""
    assert crm.struck_by(Slow(seconds=3)).delay == 3
    assert crm.struck_by(Drip(seconds=4)).drip == 4
    assert crm.struck_by(CutShort()).breaks is Break.IN_BODY
    oversized = crm.struck_by(Oversized(size=1_000))
    assert (len(oversized.body), oversized.announced) == (1_000, False)
    assert oversized.body.strip() == TRUE_ANSWER.body


# Which requests a plan hits


def hits(faults: Faults, request: SandboxRequest = POST, times: int = 10) -> list[bool]:
    return [faults.take(request) is not None for _ in range(times)]


def test_a_plan_hits_the_next_request_once() -> None:
    """Without further word a fault is for one request."""
    faults = Faults(Random(1))
    faults.add(Timeout())
    assert hits(faults, times=3) == [True, False, False]


def test_a_plan_hits_as_often_as_told() -> None:
    """`times` bounds the hits; None means no end."""
    faults = Faults(Random(1))
    faults.add(Timeout(times=3))
    assert hits(faults, times=5) == [True] * 3 + [False] * 2
    faults.add(Timeout(times=None))
    assert all(hits(faults, times=100))


@pytest.mark.parametrize(
    ("fault", "request_", "hit"),
    [
        (Timeout(method="POST"), POST, True),
        (Timeout(method="GET"), POST, False),
        (Timeout(path="/api/v1/inbound"), POST, True),
        (Timeout(path="/v1"), POST, False),
        (Timeout(method="POST", path="/api/v2"), POST, False),
        (Timeout(path="/api/a%2Fb"), SandboxRequest("GET", "/api/a%2Fb/status"), True),
    ],
)
def test_a_plan_is_about_its_method_and_path(fault: Fault, request_: SandboxRequest, hit: bool) -> None:
    """Only requests with the method and the raw path prefix are hit; others use nothing up."""
    faults = Faults(Random(1))
    faults.add(fault)
    assert (faults.take(request_) is fault) is hit
    assert bool(faults.waiting()) is not hit


def test_plans_strike_in_the_order_of_the_queue() -> None:
    """A request meets the first fault that is meant for it, and that one alone."""
    faults = Faults(Random(1))
    faults.add(Reset(method="GET"), Timeout(), Html())
    taken = [faults.take(POST) for _ in range(3)]
    assert [fault.kind for fault in taken if fault] == ["timeout", "html"]
    assert [plan["kind"] for plan in faults.waiting()] == ["reset"]


def test_chance_comes_from_the_seed_and_has_no_end() -> None:
    """A probability hits about its share of requests, the same ones for the same seed, until cleared."""

    def run(seed: int) -> list[bool]:
        faults = Faults(Random(seed))
        faults.add(Timeout(probability=0.3))
        return hits(faults, times=2_000)

    assert run(1) == run(1) != run(2)
    assert 500 < sum(run(1)) < 700


def test_chance_can_be_bounded() -> None:
    """A probability with `times` ends after that many hits."""
    faults = Faults(Random(1))
    faults.add(Timeout(probability=0.5, times=2))
    assert sum(hits(faults, times=100)) == 2


def test_a_certain_fault_leaves_the_seed_alone() -> None:
    """Queueing a certain fault does not change which later requests a probable one hits."""
    random = Random(1)
    faults = Faults(random)
    faults.add(Timeout(times=5))
    hits(faults, times=5)
    assert random.random() == Random(1).random()


# Over HTTP


def control(faults: Faults, method: str, body: str = "") -> SandboxResponse:
    return faults.control(SandboxRequest(method, "/sandbox/faults", body=body.encode()))


@pytest.mark.parametrize(
    ("body", "queued"),
    [
        ('{"kind": "timeout", "when": "after", "times": 2}', Timeout(when="after", times=2)),
        ('{"kind": "reset", "method": "POST", "path": "/api"}', Reset(method="POST", path="/api")),
        ('{"kind": "html", "status": 502}', Html(status=502)),
        ('{"kind": "replaced", "text": "null"}', Replaced(text="null")),
        ('{"kind": "redirect", "location": "http://x.invalid"}', Redirect(location="http://x.invalid")),
        ('{"kind": "rate_limited", "retry_after": "soon"}', RateLimited(retry_after="soon")),
        ('{"kind": "rate_limited", "retry_after_date": 9}', RateLimited(retry_after_date=9)),
        ('{"kind": "coded_error", "status": 500, "code": "x"}', CodedError(status=500, code="x")),
        ('{"kind": "unauthorized"}', Unauthorized()),
        ('{"kind": "forbidden"}', Forbidden()),
        ('{"kind": "slow", "seconds": 2}', Slow(seconds=2)),
        ('{"kind": "drip", "seconds": 2}', Drip(seconds=2)),
        ('{"kind": "cut_short"}', CutShort()),
        ('{"kind": "oversized", "size": 5}', Oversized(size=5)),
        ('{"kind": "timeout", "probability": 0.2}', Timeout(probability=0.2, times=None)),
    ],
)
def test_every_kind_can_be_queued_as_json(body: str, queued: Fault) -> None:
    """What Python can queue, a person with curl can."""
    faults = Faults(Random(1))
    assert control(faults, "POST", body).status == 200
    (waiting,) = faults.waiting()
    assert waiting == queued.model_dump() | {"hits": 0}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("", "JSON"),
        ("[]", "body: "),
        ('{"kind": "earthquake"}', "earthquake"),
        ('{"kind": "timeout", "seconds": 3}', "seconds"),
        ('{"kind": "timeout", "when": "during"}', "when"),
        ('{"kind": "timeout", "times": 0}', "times"),
        ('{"kind": "timeout", "probability": 0}', "probability"),
        ('{"kind": "timeout", "probability": NaN}', "probability"),
        ('{"kind": "coded_error", "status": 404}', "status"),
        ('{"kind": "slow", "seconds": -1}', "seconds"),
        ('{"kind": "slow", "seconds": Infinity}', "seconds"),
    ],
)
def test_a_mistaken_fault_is_refused_with_its_mistake(body: str, word: str) -> None:
    """422 names what is wrong, and nothing is queued."""
    faults = Faults(Random(1))
    answer = control(faults, "POST", body)
    assert answer.status == 422
    assert word in answer.body.decode()
    assert faults.waiting() == []


def test_waiting_faults_are_shown_and_cleared() -> None:
    """`GET` shows what waits with its hits, `DELETE` clears it, and other methods are refused."""
    faults = Faults(Random(1))
    faults.add(Timeout(times=3))
    hits(faults, times=1)
    assert b'"hits": 1' in control(faults, "GET").body
    assert control(faults, "DELETE") == json_answer(200, {"faults": []})
    assert hits(faults, times=1) == [False]
    assert control(faults, "PUT").status == 405
