"""An account of amoCRM for tests of the whole client."""

import json
from random import Random
from typing import Any, override

import httpx

from crm_relay.amocrm.session import LongLivedToken
from tests.relay import Clock
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, MemoryTransport
from workbench.sandboxes.amocrm.account import USERS

HOST = "example.amocrm.ru"


class AsyncMemoryTransport(httpx.AsyncBaseTransport):
    """The sandboxes in memory, for the asynchronous client."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        response = self._transport.handle_request(request)
        return httpx.Response(response.status_code, headers=response.headers, content=response.read())


class Office:
    """An account, and what clients of either kind are made with."""

    def __init__(self, **terms: Any) -> None:
        self.clock = Clock()
        ours = Integration(
            client_id="client", client_secret="secret", redirect_uri="https://relay.invalid/amo", user_id=USERS[0].id
        )
        self.sandbox = AmoCrmSandbox(
            AmoCrmAccount(integrations=(ours,), **terms), clock=self.clock.time, random=Random(7)
        )
        hosts = (HOST, "moved.amocrm.ru", "api-b.amocrm.ru", "www.amocrm.ru", "drive.amocrm.ru", "drive-b.amocrm.ru")
        self.transport = MemoryTransport(dict.fromkeys(hosts, self.sandbox), self.clock.sleep)
        self.access = LongLivedToken(HOST, self.sandbox.long_lived_token("client"))
        clocks: dict[str, Any] = {"clock": self.clock.time, "monotonic": self.clock.time}
        self.options: dict[str, Any] = {
            "access": self.access,
            "transport": self.transport,
            "sleep": self.clock.sleep,
            **clocks,
        }
        self.async_options: dict[str, Any] = {
            "access": self.access,
            "transport": AsyncMemoryTransport(self.transport),
            "sleep": self._sleep,
            **clocks,
        }

    async def _sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def writes(self) -> list[Any]:
        """What clients have written so far."""
        return [json.loads(one.request.body) for one in self.sandbox.received if one.request.body]

    def a_chat(self) -> str:
        """A chat begins; return the uid of the incoming lead."""
        uid: str = self.sandbox.receive("chats")["uid"]
        return uid

    def a_talk(self) -> int:
        """Somebody writes; return the id of the conversation."""
        (contact,) = self.sandbox.add("contacts", name="Оля")
        talk_id: int = self.sandbox.talk(contact.id)["talk_id"]
        return talk_id
