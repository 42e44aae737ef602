"""The metadata of the Flex Templates: parameters, made from the declarations of flags.

`python -m templates.metadata` writes templates/metadata/*.json again;
`python -m templates.metadata --spec audit --image IMAGE` prints a template for Cloud Storage.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.flags.declarations import commands
from pipeline.flags.declarations.commands import flags_of
from pipeline.flags.declarations.flag import Flag

# The commands that are worth a template: they build a graph from files of others.
COMMANDS = ("influence", "features", "score", "audit")
DIRECTORY = pathlib.Path(__file__).parent / "metadata"

# One process on a machine holds the checkpoints once, and --memory_gb is its own.
EXPERIMENTS = ("no_use_multiple_sdk_containers",)


def parameters(command: str) -> list[dict[str, Any]]:
    """Returns the parameters of a command's template, in the order of its help."""
    return [_parameter(flag) for flag in flags_of(command)]


def _parameter(flag: Flag) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "name": flag.name,
        "label": flag.name.replace("_", " ").capitalize(),
        "helpText": flag.text[0].upper() + flag.text[1:] + ".",
        "isOptional": not flag.required,
        "paramType": flag.kind.parameter,
        "groupName": flag.group.capitalize(),
        "regexes": [f"^{flag.kind.regex}$"],
    }
    if flag.kind.choices:
        parameter["enumOptions"] = [
            {"value": choice, "label": choice} for choice in flag.kind.choices
        ]
    if flag.default_text is not None:
        parameter["defaultValue"] = flag.default_text
    return parameter


def metadata(command: str) -> dict[str, Any]:
    """Returns Dataflow's metadata of a command's template."""
    summary = commands.COMMANDS[command].summary
    return {
        "name": f"TracIn: {command}",
        "description": f"{summary[0].upper()}{summary[1:]}. See README.md of tracin-beam.",
        "streaming": False,
        "parameters": parameters(command),
    }


def spec(command: str, image: str, worker_image: str | None = None) -> dict[str, Any]:
    """Returns a Flex Template: its launcher's image, and its jobs' settings unless a launch has
    others.

    Args:
        command: one of `COMMANDS`.
        image: the image that is made for this command.
        worker_image: the workers' image, if another, such as one with a GPU's libraries.
    """
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": metadata(command),
        "defaultEnvironment": {
            "sdkContainerImage": worker_image or image,
            "additionalExperiments": list(EXPERIMENTS),
        },
    }


def text(content: dict[str, Any]) -> str:
    """Returns the text of a file of metadata, or of a template."""
    return json.dumps(content, indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the metadata of all templates, or prints one template."""
    parser = argparse.ArgumentParser(prog="python -m templates.metadata", allow_abbrev=False)
    parser.add_argument(
        "--spec",
        choices=COMMANDS,
        metavar="COMMAND",
        help="print the template of this command instead",
    )
    parser.add_argument("--image", metavar="IMAGE", help="its image")
    parser.add_argument("--worker_image", metavar="IMAGE", help="the workers' image, if another")
    args = parser.parse_args(argv)
    if args.spec:
        if not args.image:
            parser.error("--spec needs --image")
        print(text(spec(args.spec, args.image, args.worker_image or None)), end="")
        return 0
    DIRECTORY.mkdir(exist_ok=True)
    for command in COMMANDS:
        (DIRECTORY / f"{command}.json").write_text(text(metadata(command)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
