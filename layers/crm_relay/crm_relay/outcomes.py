"""What became of a request to a CRM, named by what may be done next."""


class Outcome(Exception):
    """A request to a CRM that did not simply succeed. The message never holds a body, a header or a secret."""


class NotExecuted(Outcome):
    """The CRM has done nothing: the same may be sent again, after `retry_after` seconds if it said so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unreachable(NotExecuted):
    """Nothing was executed because the CRM is down or out of reach: enough of these open the circuit."""


class OutcomeUnknown(Outcome):
    """The request left and no usable answer came: it may have been executed. Look in the CRM before repeating."""


class NotConfigured(Exception):
    """There is no secret, or none that can be used: nothing can be verified or signed until there is."""


class Rejected(Outcome):
    """The CRM refused for good; repeating the same cannot help. `reason` is the CRM's own word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unauthorized(Outcome):
    """The CRM does not accept our credentials: every request of this account would fail the same way."""


class Blocked(Outcome):
    """The account is closed to us or has moved (amoCRM's 403 page, a redirect): somebody has to look."""
