"""What can be changed about a portal while it runs."""

from pydantic import NonNegativeFloat, NonNegativeInt

from workbench.sandboxes.bitrix24.files import Disposition
from workbench.sandboxes.sandbox import Switches


class Bitrix24Switches(Switches):
    """What can be changed about a portal while it runs.

    `overloaded`, `deleted` and not `paid` refuse every call. A call of a method works `operating_per_call` seconds,
    which count against its limit; whether a refusal for it tells the time is not documented, `refusals_tell_time`
    has it both ways. A batch `breaks_batches_after` so many commands with a page of the gateway. Calls of robots
    and events leave out what some captures lack unless `tells_subscription` and `tells_handler_id`. A fetched
    file's name comes in the form of `disposition`.
    """

    overloaded: bool = False
    deleted: bool = False
    paid: bool = True
    operating_per_call: NonNegativeFloat = 0.02
    refusals_tell_time: bool = True
    breaks_batches_after: NonNegativeInt | None = None
    origin_can_be_filtered: bool = True
    tells_subscription: bool = True
    tells_handler_id: bool = True
    disposition: Disposition = "both"
