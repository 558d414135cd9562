"""A pytest plugin: `--plant NAME` plants a mistake before any test is read."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--plant", help="a mistake of tests/planted/plants.py")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Plant the mistake, for as long as this process lives."""
    import tests.conftest  # noqa: F401, PLC0415 (the environment, before anything reads it)
    from tests.planted.plants import MISTAKES  # noqa: PLC0415

    MISTAKES[config.getoption("--plant")].plant(pytest.MonkeyPatch())
