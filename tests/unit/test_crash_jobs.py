"""What is killed at each of its I/O calls by the tests of the local stack: no function is left out."""

from pathlib import Path

from tests.crash.jobs import JOBS
from workbench.stack import transformed


def test_every_function_of_the_template_is_killed_somewhere() -> None:
    """Here, where no stack has to be started, so that a new function is missed at once."""
    resources = transformed(Path(__file__).parents[2] / "template.yaml")["Resources"]
    functions = {name for name, resource in resources.items() if resource["Type"] == "AWS::Lambda::Function"}
    assert functions == JOBS.keys()
