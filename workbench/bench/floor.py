"""The least that a function here can be: boto3, the two clients that everything goes through, and Powertools.

It is copied and started as a function of its own beside the real ones; nothing imports it.
"""

from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics

logger = Logger()
metrics = Metrics()
session = boto3.Session()
sqs = session.client("sqs")
dynamodb = session.client("dynamodb")


def handler(_event: Any, _context: Any) -> None:
    """Do nothing."""
