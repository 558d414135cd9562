"""The jobs of the relay in the simulation. A further one is a class, and an entry in `jobs`."""

from amo_webhook import account as amo_account
from bitrix_robot import carrier, portal
from lead_submitter import submission
from tests.simulation.amocrm import Notes
from tests.simulation.bitrix24 import Deals
from tests.simulation.cartelcrm import Callbacks, CartelCrm, Leads
from tests.simulation.job import Job
from tests.simulation.world import World

CACHES = (submission.account, amo_account.amo_account, portal.portal, carrier.carrier)
"""What functions keep for a process, by its runtime."""


def jobs(world: World) -> list[Job]:
    """Return every job of this relay, in its world."""
    cartelcrm = CartelCrm(world)
    return [Leads(world, cartelcrm), Callbacks(world, cartelcrm), Notes(world), Deals(world)]
