"""What AWS would make of a SAM template: plain CloudFormation."""

import json
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

type Json = dict[str, Any]

ACCOUNT = "123456789012"
LOCAL_BUCKET = "workbench-local-files"
REFERENCE = re.compile(r"\$\{([A-Za-z0-9]+)(?:\.([A-Za-z0-9.]+))?\}")


def transformed(path: Path, parameters: Mapping[str, str] | None = None, region: str = "eu-central-1") -> Json:
    """Turn the SAM template at `path` into plain CloudFormation, as `sam deploy` would, without AWS and any build.

    Local code and layer folders appear as objects of `LOCAL_BUCKET` whose key is the folder, relative to the template.
    Raises samtranslator's `InvalidDocumentException` when the template is wrong.
    """
    # Imported here because they take longer than all the rest of the workbench.
    import boto3  # noqa: PLC0415
    from samtranslator.parser.parser import Parser  # noqa: PLC0415
    from samtranslator.translator.translator import Translator  # noqa: PLC0415
    from samtranslator.yaml_helper import yaml_parse  # noqa: PLC0415

    template = yaml_parse(path.read_text("utf-8"))
    _point_at_local_folders(template)
    logging.getLogger("samtranslator").setLevel(logging.ERROR)  # it warns of switches of its own makers
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name=region))
    plain = translator.translate(template, dict(parameters or {}), get_managed_policy_map=dict)
    # YAML reads `Version: 2012-10-17` as a date.
    return json.loads(json.dumps(plain, default=str))  # type: ignore[no-any-return]


def _point_at_local_folders(template: Json) -> None:
    sections = [template.get("Globals", {}).get("Function", {})]
    sections += [resource.get("Properties", {}) for resource in template["Resources"].values()]
    for properties in sections:
        for name in ("CodeUri", "ContentUri"):
            if isinstance(folder := properties.get(name), str):
                properties[name] = f"s3://{LOCAL_BUCKET}/{posixpath.normpath(folder)}"


def references(tree: Any) -> Iterator[str]:
    """All logical ids that a piece of template refers to, with `Ref`, `Fn::GetAtt` or `Fn::Sub`."""
    match tree:
        case {"Ref": str(name)}:
            yield name
        case {"Fn::GetAtt": [str(name), *_]}:
            yield name
        case {"Fn::Sub": sub}:
            yield from (match[1] for match in REFERENCE.finditer(json.dumps(sub)))
            yield from references(sub)
        case dict():
            for branch in tree.values():
                yield from references(branch)
        case list():
            for branch in tree:
                yield from references(branch)
        case _:
            pass
