"""What Dataflow is told of each template: the parameters, from the flags of the command itself.

python -m templates.metadata                                            write
templates/metadata/*.json again python -m templates.metadata --spec audit --image IMAGE > audit.json
a template, to be put on Cloud Storage
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.flags import options

# What is worth a template: the commands that build a graph of what others gave.
COMMANDS = ("influence", "features", "score", "audit")
DIRECTORY = pathlib.Path(__file__).parent / "metadata"

# One process on a machine holds the checkpoints once, and --memory_gb is its own.
EXPERIMENTS = ("no_use_multiple_sdk_containers",)

_NUMBER = r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?"
_PATH = r"gs://[^,\r\n]+"
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a parameter is asked for, and what it may be.

    Attributes:
        name: Dataflow's `paramType`.
        regex: what all of a value must match, in the common part of RE2's, Java's and Python's
            syntax.
    """

    name: str
    regex: str


_LINE = Kind("TEXT", r"[^\r\n]+")
_READ = Kind("GCS_READ_FOLDER", r"gs://[^*?\[\]{}\r\n]+")
_WRITE = Kind("GCS_WRITE_FOLDER", _READ.regex)

# By what reads the value.
_TYPED = {
    "_accelerator": Kind(
        "TEXT", r"type:[\w.-]+;count:[1-9][0-9]*(;install-nvidia-driver(:[\w.-]+)?)?"
    ),
    "_date": Kind("TEXT", r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "_boolean": Kind("BOOLEAN", r"(true|false)"),
    "_directory": _READ,
    "_fraction": Kind("NUMBER", r"(0?\.[0-9]+|0(\.[0-9]*)?|1(\.0*)?|[0-9](\.[0-9]*)?[eE]-[0-9]+)"),
    "_gigabytes": Kind("NUMBER", r"([0-9]*[1-9][0-9]*(\.[0-9]*)?|[0-9]*\.[0-9]*[1-9][0-9]*)"),
    "_names": Kind("TEXT", r"[^,\r\n]+(,[^,\r\n]+)*"),
    "_positive": Kind("NUMBER", r"[1-9][0-9]*"),
    "_rates": Kind("TEXT", rf"{_NUMBER}(,{_NUMBER})*"),
    "_table": Kind(
        "BIGQUERY_TABLE",
        r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]:[A-Za-z0-9_]{1,1024}\.[A-Za-z0-9_-]{1,1024}",
    ),
    "_whole": Kind("NUMBER", r"[0-9]+"),
}
# By what it is called in the help, where it is taken as it is.
_UNTYPED = {
    "DIR": _READ,
    "FILE": Kind("GCS_READ_FILE", r"gs://[^*?\[\]{}\r\n]+"),
    # Several, with globs: none of Dataflow's pickers gives that.
    "GLOBS": Kind("TEXT", rf"{_PATH}(,\s*{_PATH})*"),
    "KEY": _LINE,
    "LOSS": _LINE,
    "MODULE:FUNCTION": Kind("TEXT", _FUNCTION),
    "NAME": _LINE,
    "SOURCE": Kind("TEXT", rf"({_PATH}|{_FUNCTION})"),
}


def kind(action: argparse.Action) -> Kind:
    """What kind of parameter a flag is.

    Raises:
        LookupError: nobody has said so for flags like this one.
    """
    if action.choices:
        return Kind("ENUM", f"({'|'.join(action.choices)})")
    read_by = getattr(action.type, "__name__", "")
    found = _TYPED.get(read_by) if action.type else _UNTYPED.get(str(action.metavar))
    if found is None:
        what = f"is read by {read_by}" if action.type else f"has the metavar {action.metavar}"
        raise LookupError(
            f"{action.option_strings[0]} {what}: say in templates/metadata.py what kind of "
            "parameter that is"
        )
    return _WRITE if found is _READ and action.dest == "output" else found


def parameters(command: str) -> list[dict[str, Any]]:
    """The parameters of a command's template, in the order of its help."""
    parser = options.parser(command)
    groups = {
        id(action): group.title
        for group in parser._action_groups
        for action in group._group_actions
    }
    return [
        _parameter(action, groups[id(action)] or "")
        for action in parser._actions
        if action.dest != "help"
    ]


def _parameter(action: argparse.Action, group: str) -> dict[str, Any]:
    name = action.option_strings[0].removeprefix("--")
    told = str(action.help) % {**vars(action), "prog": ""}
    found = kind(action)
    parameter: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": told[0].upper() + told[1:] + ".",
        "isOptional": not action.required,
        "paramType": found.name,
        "groupName": group.capitalize(),
        "regexes": [f"^{found.regex}$"],
    }
    if action.choices:
        parameter["enumOptions"] = [{"value": choice, "label": choice} for choice in action.choices]
    if isinstance(action.default, bool):
        parameter["defaultValue"] = str(action.default).lower()
    elif action.default not in (None, ()):
        parameter["defaultValue"] = str(action.default)
    return parameter


def metadata(command: str) -> dict[str, Any]:
    """Dataflow's metadata of a command's template."""
    told = options.COMMANDS[command]
    return {
        "name": f"TracIn: {command}",
        "description": f"{told[0].upper()}{told[1:]}. See README.md of tracin-beam.",
        "streaming": False,
        "parameters": parameters(command),
    }


def spec(command: str, image: str, worker_image: str | None = None) -> dict[str, Any]:
    """A Flex Template: where its launcher is, and what is so for its jobs unless they are launched
    otherwise.

    Args:
        command: of `COMMANDS`.
        image: the image that is made for this command.
        worker_image: what the workers run, if another, as one with a GPU's libraries.
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
    """The file that holds some metadata or a template."""
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
