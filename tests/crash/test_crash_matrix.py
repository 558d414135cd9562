"""A function that is killed at any of its I/O calls costs nothing and doubles nothing.

The calls are found, not listed: two runs without a kill tell them. To die before a call is to die after the one
before it, since nothing of what a process does between two of them is to be seen from outside; so what is killed is
each run's first call before, and each call after it was made. What only one of the two runs has called is listed apart.
"""

from collections.abc import Callable

import pytest

from tests.crash.crashing import Crashing
from tests.crash.jobs import JOBS, Job

_CASES = [(function, job) for function, jobs in JOBS.items() for job in jobs]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("function", "kind"), _CASES, ids=[f"{name}-{job.__name__}" for name, job in _CASES])
async def test_wherever_a_function_dies_the_effect_comes_once(
    crashing: Crashing, record_property: Callable[[str, object], None], function: str, kind: type[Job]
) -> None:
    async with crashing.quick_starts(function):
        first, second = [await crashing.boundaries(function, kind(crashing.relay)) for _ in range(2)]
        found = [boundary for boundary in first if boundary in second]  # no look that only a slow machine makes
        assert found
        record_property(f"{function}, {kind.__name__}", found)
        unsteady = [boundary for boundary in dict.fromkeys([*first, *second]) if boundary not in found]
        record_property(f"{function}, {kind.__name__}, made in one run only and not killed at", unsteady)
        jobs = []
        for where in (f"before {found[0]}", *(f"after {boundary}" for boundary in found)):
            job = kind(crashing.relay)
            if not await crashing.crash(function, job, where):
                job = kind(crashing.relay)
                assert await crashing.crash(function, job, where, cold=True), where
            assert await job.effects() == 1, where
            jobs.append((where, job))
    await crashing.calm(job)
    assert [where for where, job in jobs if await job.effects() != 1] == []
    assert await crashing.dead_letters() == 0
    assert crashing.canaries() == []
