"""Where the table keeps what belongs to a portal."""


def portal_key(name: str) -> str:
    """Return the last part of the keys of a portal's token, its pause and its budget."""
    return f"bitrix24#{name}"


def app_key(name: str) -> str:
    """Return the key of the app in a portal: {"application_token"}."""
    return f"app#{portal_key(name)}"
