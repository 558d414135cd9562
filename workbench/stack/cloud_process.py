"""The process that plays AWS: moto's server on 127.0.0.1, one call at a time, for as long as the workbench lives.

The port is its only line of output. It ends when its standard input does.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from threading import Lock, Thread
from typing import Any

# The models that moto's CloudFormation wants take seconds to import; the workbench has other things to do meanwhile.
import moto.cloudformation.responses
import moto.dynamodb.responses
import moto.events.responses
import moto.secretsmanager.responses
import moto.sqs.responses  # noqa: F401
from moto.core.common_models import CloudFormationModel
from moto.dynamodb.models import DynamoDBBackend, dynamodb_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.secretsmanager.models import secretsmanager_backends
from werkzeug.exceptions import Forbidden, InternalServerError
from werkzeug.serving import make_server

from workbench.stack.template import ACCOUNT

_log = logging.getLogger("moto")
_HOSTS = ("127.0.0.1", "localhost")

type Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Secret(CloudFormationModel):  # type: ignore[misc]
    """`AWS::SecretsManager::Secret`, which moto 5.2.5 has no CloudFormation for; moto finds it as a subclass.

    Without `SecretString` it holds no value, as on AWS.
    """

    __module__ = "moto.secretsmanager.models"  # moto files its models by the middle of this name

    def __init__(self, arn: str) -> None:
        self.physical_resource_id = arn

    @staticmethod
    def cloudformation_name_type() -> str:
        """Name the property that holds the secret's name."""
        return "Name"

    @staticmethod
    def cloudformation_type() -> str:
        """Name the type in templates."""
        return "AWS::SecretsManager::Secret"

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        """Tell whether `Fn::GetAtt` knows `attr`."""
        return attr == "Id"

    def get_cfn_attribute(self, attribute_name: str) -> str:
        """Answer `Fn::GetAtt`: the one attribute is the ARN."""
        assert attribute_name == "Id"
        return self.physical_resource_id

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: dict[str, Any], account_id: str, region_name: str, **_: Any
    ) -> "Secret":
        """Make the secret in moto's Secrets Manager."""
        properties = cloudformation_json["Properties"]
        secret = secretsmanager_backends[account_id][region_name].create_secret(
            name=resource_name,
            secret_string=properties.get("SecretString"),
            secret_binary=None,
            description=properties.get("Description"),
            tags=properties.get("Tags"),
            kms_key_id=properties.get("KmsKeyId"),
            client_request_token=None,
            replica_regions=[],
            force_overwrite=False,
        )
        return cls(json.loads(secret)["ARN"])


def straight(application: Application) -> Application:
    """Take the two commonest calls, GetItem and PutItem, to moto's tables past its layers, which cost far more.

    What is unusual or fails there goes the long way: nothing has been written, and moto words the refusal.
    """

    def shortened(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        call = _SHORT.get(environ.get("HTTP_X_AMZ_TARGET", ""))
        region = _REGION.search(environ.get("HTTP_AUTHORIZATION", ""))
        if call is None or region is None:
            return application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        try:
            answer = json.dumps(call(dynamodb_backends[ACCOUNT][region[1]], **json.loads(body))).encode()
        except Exception:  # noqa: BLE001 - moto's, of any kind
            return application({**environ, "wsgi.input": BytesIO(body)}, start_response)
        start_response("200 OK", [("Content-Type", "application/x-amz-json-1.0"), ("Content-Length", str(len(answer)))])
        return [answer]

    return shortened


def _get_item(
    backend: DynamoDBBackend,
    *,
    TableName: str,  # noqa: N803 - as AWS calls it
    Key: Mapping[str, Any],  # noqa: N803
    ConsistentRead: bool = False,  # noqa: ARG001, N803
) -> dict[str, Any]:
    item = backend.get_item(TableName, dict(Key))
    return {"Item": item.to_json()["Attributes"]} if item else {}


def _put_item(
    backend: DynamoDBBackend,
    *,
    TableName: str,  # noqa: N803
    Item: dict[str, Any],  # noqa: N803
    ConditionExpression: str,  # noqa: N803
    ExpressionAttributeValues: dict[str, Any],  # noqa: N803
    ExpressionAttributeNames: dict[str, Any] | None = None,  # noqa: N803
    ReturnValuesOnConditionCheckFailure: str | None = None,  # noqa: N803
) -> dict[str, Any]:
    names, values = ExpressionAttributeNames or {}, ExpressionAttributeValues
    on_failure = ReturnValuesOnConditionCheckFailure
    backend.put_item(TableName, Item, None, ConditionExpression, names, values, False, on_failure)
    return {}


_SHORT: Mapping[str, Callable[..., dict[str, Any]]] = {
    "DynamoDB_20120810.GetItem": _get_item,
    "DynamoDB_20120810.PutItem": _put_item,
}
_REGION = re.compile(r"Credential=[^/]+/[0-9]+/([^/]+)/")


def one_at_a_time(application: Application) -> Application:
    """Serialise the calls: moto tests a condition and writes in two steps that another thread may come between.

    A long poll of a queue waits outside the line; what it touches, it touches in single steps.
    """
    lock = Lock()

    def serialised(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_X_AMZ_TARGET") == "AmazonSQS.ReceiveMessage":
            return application(environ, start_response)
        with lock:
            return application(environ, start_response)

    return serialised


def outspoken(application: Application) -> Application:
    """Log moto's own errors before they are answered, so that whoever gets the answer can read the log."""

    def logged(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return application(environ, start_response)
        except Exception:  # noqa: BLE001 - moto's, of any kind
            _log.exception("moto failed at %s", environ.get("HTTP_X_AMZ_TARGET", environ["PATH_INFO"]))
            return InternalServerError()(environ, start_response)

    return logged


def for_processes_only(application: Application) -> Application:
    """Refuse what a web page sends: a stack may hold real keys, and a browser reaches 127.0.0.1 too."""

    def refused(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        from_page = "HTTP_ORIGIN" in environ or environ.get("HTTP_HOST", "").partition(":")[0] not in _HOSTS
        return (Forbidden() if from_page else application)(environ, start_response)

    return refused


def main() -> None:
    """Serve until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto_server = DomainDispatcherApplication(create_backend_app)
    application = for_processes_only(outspoken(one_at_a_time(straight(moto_server))))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
