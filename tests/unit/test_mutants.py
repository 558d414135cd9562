"""`make mutants` tells one place from another, so that a reason excuses no more than it was written for."""

from tests.mutants import mutants

_CODE = """
KEPT: int = 1

@dataclass(frozen=True)
class Ledger:
    tries = 1

    def claim(self, again=True):
        kept = 1
        return wait(kept, 1)
"""


def test_the_same_change_has_a_name_of_its_own_in_each_place() -> None:
    """The function, class or variable that it is in comes first."""
    says = {mutant.says for mutant in mutants("module", _CODE)}
    assert says == {
        "KEPT: 1  →  2",
        "Ledger: True  →  False",
        "Ledger.tries: 1  →  2",
        "Ledger.claim: True  →  False",
        "Ledger.claim.kept: 1  →  2",
        "Ledger.claim: 1  →  2",
        "Ledger.claim: return wait(kept, 1)  →  return None",
    }
