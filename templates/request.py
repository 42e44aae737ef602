"""The request that launches a template, checked against the template's parameters before anybody is
asked.

`python -m templates.request COMMAND --job_name NAME --templates gs://BUCKET/templates
[--validate_only] NAME=VALUE …` prints it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.flags.dataflow import mistake
from templates import metadata


class Refused(Exception):
    """The template would not be launched with this; the message is the one line for the user."""


def request(
    command: str,
    job_name: str,
    templates: str,
    parameters: Mapping[str, str],
    environment: Mapping[str, Any],
    validate_only: bool = False,
) -> dict[str, Any]:
    """The body of `projects.locations.flexTemplates.launch`.

    Args:
        command: of `metadata.COMMANDS`.
        job_name: no job that is running may be called so.
        templates: the directory of the templates.
        parameters: of the template.
        environment: fields of Dataflow's FlexTemplateRuntimeEnvironment.
        validate_only: ask whether it could be launched, and launch nothing.

    Raises:
        Refused: the template has no such parameter, lacks one, or does not take a value; or a name
            cannot be.
    """
    told = {one["name"]: one for one in metadata.parameters(command)}
    for name, value in parameters.items():
        if name not in told:
            raise Refused(
                f"the template {command} has no parameter {name!r}; it has {', '.join(told)}"
            )
        (regex,) = told[name]["regexes"]
        if not re.fullmatch(regex, value):
            raise Refused(f"{name}={value!r} does not match {regex}: {told[name]['helpText']}")
    missing = [
        name for name, one in told.items() if not one["isOptional"] and name not in parameters
    ]
    if missing:
        raise Refused(f"the template {command} needs {', '.join(missing)}")
    # The rules of names, where the rest of a submission is as it should be.
    submission = (
        "--runner=DataflowRunner",
        "--project=any-project",
        "--region=any-region1",
        f"--job_name={job_name}",
    )
    wrong = mistake(
        [*submission, f"--temp_location={environment.get('tempLocation', 'gs://any-bucket/tmp')}"]
    )
    if wrong:
        raise Refused(wrong)
    launch = {
        "jobName": job_name,
        "containerSpecGcsPath": f"{templates.rstrip('/')}/{command}.json",
        "parameters": dict(parameters),
        "environment": dict(environment),
    }
    return {"launchParameter": launch, "validateOnly": validate_only}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a request, or says what is wrong with it and returns 2."""
    parser = argparse.ArgumentParser(prog="python -m templates.request", allow_abbrev=False)
    parser.add_argument("command", choices=metadata.COMMANDS)
    parser.add_argument(
        "parameters", nargs="*", metavar="NAME=VALUE", help="parameters of the template"
    )
    parser.add_argument(
        "--job_name",
        required=True,
        metavar="NAME",
        help="up to 63 small letters, digits and hyphens",
    )
    parser.add_argument(
        "--templates", required=True, metavar="DIR", help="where the templates are, gs://…"
    )
    parser.add_argument("--temp_location", metavar="DIR", help="for temporary files, gs://…")
    parser.add_argument("--service_account", metavar="EMAIL", help="what the workers run as")
    parser.add_argument("--worker_image", metavar="IMAGE", help="what the workers run")
    parser.add_argument("--max_workers", type=int, metavar="N", help="at most so many machines")
    parser.add_argument("--machine_type", metavar="TYPE", help="of the machines")
    parser.add_argument("--disk_gb", type=int, metavar="GB", help="disk of each machine")
    parser.add_argument(
        "--validate_only",
        action="store_true",
        help="ask whether it could be launched, and launch nothing",
    )
    args = parser.parse_intermixed_args(argv)
    environment = {
        "tempLocation": args.temp_location,
        "serviceAccountEmail": args.service_account,
        "sdkContainerImage": args.worker_image,
        "maxWorkers": args.max_workers,
        "machineType": args.machine_type,
        "diskSizeGb": args.disk_gb,
        "additionalExperiments": metadata.EXPERIMENTS,
    }
    try:
        pairs = [word.partition("=") for word in args.parameters]
        for name, equals, _ in pairs:
            if not equals:
                raise Refused(f"expected NAME=VALUE, found {name!r}")
        parameters = {name: value for name, _, value in pairs}
        given = {name: value for name, value in environment.items() if value}
        body = request(
            args.command, args.job_name, args.templates, parameters, given, args.validate_only
        )
    except Refused as refused:
        print(f"templates.request: {refused}", file=sys.stderr)
        return 2
    print(json.dumps(body, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
