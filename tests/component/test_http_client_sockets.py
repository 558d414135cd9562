"""The HTTP client over real sockets: what a peer can do to it, and how long it can hold it."""

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from crm_relay import http_client
from crm_relay.http_client import RESPONSE_LIMIT, Exchange, HttpClient, Request, Response
from crm_relay.outcomes import OutcomeUnknown, Unreachable

DEADLINE = 0.3
PATIENCE = 2.0
"""Seconds after which a deadline was surely missed, on a busy machine too."""

type Conduct = Callable[[socket.socket, Event], None]
"""What a server does with a connection; the event is set when the test is over."""


@contextmanager
def server(conduct: Conduct) -> Iterator[str]:
    """A server on 127.0.0.1; yields its address without a scheme."""
    over = Event()
    connections: list[socket.socket] = []
    threads: list[Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has left, as it should
            conduct(connection, over)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threads.append(Thread(target=serve, args=(connection,)))
            threads[-1].start()

    acceptor = Thread(target=accept)
    acceptor.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    """Read the head of a request, and its body if it has one."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65_536)
        if not more:
            raise ConnectionResetError
        data += more
    return data


def answering(answer: bytes) -> Conduct:
    def conduct(connection: socket.socket, _: Event) -> None:
        read_request(connection)
        connection.sendall(answer)

    return conduct


def deaf(_: socket.socket, over: Event) -> None:
    """Read nothing, say nothing."""
    over.wait()


def dripping(start: bytes) -> Conduct:
    def conduct(connection: socket.socket, over: Event) -> None:
        read_request(connection)
        connection.sendall(start)
        while not over.wait(0.02):
            connection.sendall(b"x")

    return conduct


@pytest.fixture
def client() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    client._client.close()


def ask(client: HttpClient, url: str, *, deadline: float = DEADLINE, content: bytes = b"") -> Response:
    def exchange() -> Exchange[Response]:
        return (yield Request("POST" if content else "GET", url, {}, content, deadline=deadline))

    return client.run(exchange())


@contextmanager
def in_time() -> Iterator[None]:
    """Whatever happens inside, it must not take much longer than the deadline."""
    start = monotonic()
    yield
    assert monotonic() - start < PATIENCE


def test_an_answer_comes_through(client: HttpClient) -> None:
    """The plain case: what the server says is what we get."""
    with server(answering(b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: 2\r\n\r\n{}")) as address:
        response = ask(client, f"http://{address}/a%2Fb?c=d")
    assert (response.status, response.headers["x-one"], response.content) == (200, "1", b"{}")


def test_environment_variables_choose_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where requests go is configuration, not an accident of the environment."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    client = HttpClient()
    with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as address:
        assert ask(client, f"http://{address}/").status == 204
    client._client.close()


def test_the_request_line_is_what_was_asked_for(client: HttpClient) -> None:
    """Percent-encoding reaches the wire as it was written."""
    lines: list[bytes] = []

    def conduct(connection: socket.socket, _: Event) -> None:
        lines.append(read_request(connection).split(b"\r\n")[0])
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with server(conduct) as address:
        ask(client, f"http://{address}/leads/%2E%2E/a%2Fb%3Fc%23d/%D0%9E/status")
    assert lines == [b"GET /leads/%2E%2E/a%2Fb%3Fc%23d/%D0%9E/status HTTP/1.1"]


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["nothing", "status", "headers", "body", "endless"],
)
def test_d19_a_peer_that_drips_is_left_at_the_deadline(client: HttpClient, start: bytes) -> None:
    """D19: a byte now and then, in the status line, the headers or the body, holds nobody beyond the total time."""
    with server(dripping(start)) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/")


def test_d19_a_peer_that_says_nothing_is_left_at_the_deadline(client: HttpClient) -> None:
    """D19: the request has left, so nobody knows."""

    def conduct(connection: socket.socket, over: Event) -> None:
        read_request(connection)
        over.wait()

    with server(conduct) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/")


def test_d19_a_peer_that_does_not_read_is_left_at_the_deadline(client: HttpClient) -> None:
    """D19: sending has the same deadline as receiving."""
    with server(deaf) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/", content=bytes(50_000_000))


def test_d19_a_peer_that_reads_little_by_little_is_left_at_the_deadline(client: HttpClient) -> None:
    """D19: of a large file it takes some bytes now and then; each of them in time, and the file never."""

    def sipping(connection: socket.socket, over: Event) -> None:
        while not over.wait(0.02):
            connection.recv(20_000)

    with server(sipping) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/", content=bytes(30_000_000))


def test_d19_interim_answers_do_not_extend_the_deadline(client: HttpClient) -> None:
    """D19: a peer that says Continue again and again has still not answered."""

    def conduct(connection: socket.socket, over: Event) -> None:
        read_request(connection)
        while not over.wait(0.02):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    with server(conduct) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/")


def test_d19_a_body_without_end_is_cut(client: HttpClient) -> None:
    """D19: no Content-Length warns of a hundred megabytes; one megabyte later we are gone."""

    def conduct(connection: socket.socket, _: Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _number in range(100 * RESPONSE_LIMIT // 65_536):
            connection.sendall(bytes(65_536))

    with server(conduct) as address, pytest.raises(OutcomeUnknown, match="response_too_large"):
        ask(client, f"http://{address}/", deadline=PATIENCE)


def test_d19_headers_without_end_are_cut(client: HttpClient) -> None:
    """D19: so is a head that never closes."""

    def conduct(connection: socket.socket, over: Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not over.is_set():
            connection.sendall(b"X-More: " + b"x" * 4096 + b"\r\n")

    with server(conduct) as address, in_time(), pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/", deadline=PATIENCE)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"],
    ids=["before", "headers", "body"],
)
@pytest.mark.parametrize("leave", [reset, socket.socket.close], ids=["reset", "closed"])
def test_d17_a_connection_that_breaks_leaves_doubt(
    client: HttpClient, start: bytes, leave: Callable[[socket.socket], None]
) -> None:
    """D17: wherever the answer breaks off, the request had arrived."""

    def conduct(connection: socket.socket, _: Event) -> None:
        read_request(connection)
        connection.sendall(start)
        leave(connection)

    with server(conduct) as address, pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/")


@pytest.mark.parametrize("answer", [b"220 mail ready\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_d17_a_peer_that_speaks_no_http_leaves_doubt(client: HttpClient, answer: bytes) -> None:
    """D17: nobody knows what it made of the request."""
    with server(answering(answer)) as address, pytest.raises(OutcomeUnknown):
        ask(client, f"http://{address}/")


def test_d17_a_refused_connection_executed_nothing(client: HttpClient) -> None:
    """D17: the port is taken, and nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="ConnectError"):
            ask(client, f"http://127.0.0.1:{taken.getsockname()[1]}/")


def test_d17_a_name_that_does_not_exist_executed_nothing(client: HttpClient) -> None:
    """D17: DNS fails before anything leaves."""
    with pytest.raises(Unreachable, match="ConnectError"):
        ask(client, "http://nowhere.invalid/")


def test_d17_what_is_no_tls_executed_nothing(client: HttpClient) -> None:
    """D17: the handshake fails before anything leaves."""

    def conduct(connection: socket.socket, _: Event) -> None:
        connection.sendall(b"HTTP/1.1 400 plain\r\n\r\n")

    with server(conduct) as address, pytest.raises(Unreachable, match="ConnectError"):
        ask(client, f"https://{address}/")


def test_d17_a_certificate_that_nobody_vouches_for_executed_nothing(client: HttpClient, tmp_path: Path) -> None:
    """D17: whoever it is, he gets neither lead nor key."""
    heard: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))

    def conduct(connection: socket.socket, _: Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            heard.append(secure.recv(65_536))

    with server(conduct) as address, pytest.raises(Unreachable, match="ConnectError"):
        ask(client, f"https://{address}/", content=b"lead")
    assert not any(heard)


def self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    file = folder / "certificate.pem"
    file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return file


def test_d17_a_handshake_that_never_ends_executed_nothing(client: HttpClient) -> None:
    """D17: the deadline covers it, and nothing has left."""
    with server(deaf) as address, in_time(), pytest.raises(Unreachable, match="ConnectTimeout"):
        ask(client, f"https://{address}/")


def test_d18_a_redirect_leads_nowhere(client: HttpClient) -> None:
    """D18: whoever stands where Location points never hears of us."""
    visits: list[bytes] = []

    def elsewhere(connection: socket.socket, _: Event) -> None:
        visits.append(read_request(connection))

    with server(elsewhere) as other:
        redirect = b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: http://" + other.encode() + b"/\r\n\r\n"
        with server(answering(redirect)) as address:
            assert ask(client, f"http://{address}/", content=b"lead").status == 307
    assert visits == []


def test_a_connection_is_kept_for_the_next_request(client: HttpClient) -> None:
    """A worker pays for one handshake, not for one a lead."""
    connections: list[int] = []

    def conduct(connection: socket.socket, _: Event) -> None:
        connections.append(1)
        while read_request(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with server(conduct) as address:
        for _ in range(3):
            assert ask(client, f"http://{address}/").status == 200
    assert len(connections) == 1


def test_a_connection_that_died_while_idle_is_replaced(client: HttpClient) -> None:
    """A server that closes idle connections leaves no request in doubt."""
    closed = Event()

    def conduct(connection: socket.socket, _: Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        connection.close()
        closed.set()

    with server(conduct) as address:
        for _ in range(3):
            assert ask(client, f"http://{address}/").status == 200
            assert closed.wait(PATIENCE)
            closed.clear()


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str, are_public: bool = True) -> None:
    """Give every name these addresses, and let them pass for public ones; an address stays what it is."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        found = [host] if host[0] in ":1" else addresses
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(families[":" in address], socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    if are_public:
        monkeypatch.setattr(http_client, "_is_public", lambda _: True)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.1.1", "100.64.0.1", "::1", "fe80::1", "fc00::1"]
)
def test_c12_a_name_that_leads_into_our_own_network_is_not_followed(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """C12: whoever controls the name; nothing was sent, so whatever it was for can wait."""
    resolve(monkeypatch, address, are_public=False)
    with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as here:
        with pytest.raises(Unreachable, match="ConnectError"):
            ask(client, f"http://partner.bitrix24.test:{here.rpartition(':')[2]}/")
        assert ask(client, f"http://{here}/").status == 204


def test_c12_of_several_addresses_only_the_public_ones_are_asked(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C12: one private address among them is left out."""
    with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as address:
        resolve(monkeypatch, "10.255.255.1", "127.0.0.1")
        monkeypatch.setattr(http_client, "_is_public", lambda address: address == "127.0.0.1")
        assert ask(client, f"http://partner.bitrix24.test:{address.rpartition(':')[2]}/").status == 204


def test_d19_the_deadline_covers_all_addresses_of_a_name(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """D19: a name with several addresses, none of which answers, gets one deadline, not one for each."""
    resolve(monkeypatch, *["127.0.0.1"] * 20)
    with deaf_server() as port, in_time(), pytest.raises(Unreachable, match="ConnectTimeout"):
        ask(client, f"http://cartelcrm.test:{port}/")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no second address")
def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dead address of two costs half of the deadline, not the lead."""
    with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as address:
        port = int(address.rpartition(":")[2])
        with deaf_server("::1", port):
            resolve(monkeypatch, "::1", "127.0.0.1")
            assert ask(client, f"http://cartelcrm.test:{port}/").status == 204


def test_an_address_that_refuses_leaves_the_next_one(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address that takes us is the one."""
    with server(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as address:
        resolve(monkeypatch, "::1", "127.0.0.1")
        assert ask(client, f"http://cartelcrm.test:{address.rpartition(':')[2]}/").status == 204


@contextmanager
def deaf_server(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose queue of connections is full, so that the next one gets no answer at all."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), family=family, backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(family))
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
