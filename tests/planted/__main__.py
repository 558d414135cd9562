"""`make planted`: plant each mistake, and print who noticed it, and how fast. First nobody may notice anything."""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console

from tests.planted.catch import SEEDS, catch, complaint
from tests.planted.plants import MISTAKES


def main() -> int:
    """Plant them all; return 1 if one goes unnoticed, or if something is noticed before any is planted."""
    parser = argparse.ArgumentParser(prog="make planted", description="Plant each mistake, and see who notices.")
    parser.add_argument("--only", choices=MISTAKES, metavar="MISTAKE", action="append", help="one of them; repeatable")
    wanted = parser.parse_args().only or list(MISTAKES)
    console = Console(highlight=False, soft_wrap=True)
    unnoticed = 0
    witnesses = [*SEEDS, *dict.fromkeys(MISTAKES[name].tests for name in wanted if MISTAKES[name].tests)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        if complaints := "".join(pool.map(complaint, witnesses)):
            console.print("noticed without any mistake:", complaints, markup=False)
            return 1
        console.print(f"without a mistake {len(SEEDS)} seeds and {len(witnesses) - len(SEEDS)} tests notice nothing")
        for each in pool.map(catch, wanted):
            unnoticed += not each.by
            console.print(each.mistake, markup=False)
            console.print(f"    {each.by or 'NOBODY'}, {each.seconds:.1f} s: {each.says}", markup=False)
    console.print(f"{len(wanted) - unnoticed} of {len(wanted)} noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
