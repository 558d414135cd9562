"""`make planted`: plant each mistake, and print who noticed it, and how fast."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console

from tests.planted.catch import catch
from tests.planted.plants import MISTAKES


def main() -> int:
    """Plant them all; return 1 if one goes unnoticed."""
    console = Console(highlight=False, soft_wrap=True)
    unnoticed = 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(catch, MISTAKES):
            unnoticed += not each.by
            console.print(each.mistake, markup=False)
            console.print(f"    {each.by or 'NOBODY'}, {each.seconds:.1f} s: {each.says}", markup=False)
    console.print(f"{len(MISTAKES) - unnoticed} of {len(MISTAKES)} noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
