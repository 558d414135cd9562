"""Our words for a lead's fate in CartelCRM."""

from typing import Literal, get_args

Status = Literal[
    "new", "accepted", "hold", "approved", "paid", "rejected", "duplicate", "trash", "callback", "returned"
]

STATUSES: tuple[str, ...] = get_args(Status)
"""What CartelCRM sends beside these is mapped by the alias table of relay.toml, or is "unknown"."""
