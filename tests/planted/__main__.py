"""`make planted`: plant each mistake, and print who noticed it, and how fast."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.planted.catch import catch
from tests.planted.plants import MISTAKES


def main() -> int:
    """Plant them all; return 1 if one goes unnoticed."""
    console = Console()
    table = Table("mistake", "noticed by", "after", "which says", title="Planted mistakes")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        catches = list(
            track(pool.map(catch, MISTAKES), total=len(MISTAKES), console=console, disable=not console.is_terminal)
        )
    for each in catches:
        table.add_row(each.mistake, each.by or "[bold red]nobody", f"{each.seconds:.1f} s", each.says)
    console.print(table)
    unnoticed = sum(not each.by for each in catches)
    console.print(f"{len(catches) - unnoticed} of {len(catches)} noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
