"""The robot that our app has in a source's portal: people put it on a stage, and it waits for the hub's deal."""

from collections.abc import Sequence

from crm_relay.bitrix24 import robots
from crm_relay.bitrix24.client import Operation

CODE = "crm_relay.transfer"
"""Its name among the app's robots."""
NAME = "Передать сделку в ЕСБ"


def transfer_robot(url: str, routes: Sequence[str], *, user_id: int, name: str = NAME) -> Operation[None]:
    """Register it.

    Args:
        url: which it calls.
        routes: of which people choose one; the first is chosen for them.
        user_id: whose token comes in its calls.
        name: as people see it.
    """
    route = {
        "Name": "Маршрут",
        "Type": "select",
        "Options": {each: each for each in routes},
        "Required": "Y",
        "Default": routes[0],
    }
    returns = {
        "esb_deal_id": {"Name": "Номер сделки в ЕСБ", "Type": "string"},
        "status": {"Name": "Результат передачи", "Type": "string"},
    }
    return robots.add_robot(CODE, url, name, user_id=user_id, properties={"route": route}, returns=returns)
