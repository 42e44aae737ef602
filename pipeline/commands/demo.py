"""`tracin demo`: the whole story on real handwritten digits, some of them labelled wrong on
purpose.

It prepares what a user would bring (examples and checkpoints), runs `tracin influence` on them, and
shows what that found.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from typing import ClassVar

from pipeline.commands import influence
from pipeline.demonstration import digits, story, workspace
from pipeline.running.command import Command, Invocation
from pipeline.running.outcomes import RunFailed
from transforms.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Demo(Command):
    """The whole story, in one directory."""

    name: ClassVar[str] = "demo"
    invocation: Invocation
    directory: str

    @classmethod
    def prepare(cls, invocation: Invocation) -> Demo:
        """Checks what is installed, and the directory."""
        _check_installed()
        directory = invocation.args.output.rstrip("/") or "/"
        workspace.prepare_directory(directory, invocation.args.overwrite)
        return cls(invocation, directory)

    def execute(self) -> None:
        """Prepares, runs and shows."""
        train, test = digits.load()
        workspace.write_inputs(self.directory, train, test)
        flags = workspace.influence_flags(self.directory, self.invocation.flags)
        print(
            "\nNow what you would type for data of your own:\n\n"
            f"{workspace.typed('influence', flags)}\n",
            flush=True,
        )
        status = influence.run(flags)
        if status:
            raise RunFailed(f"tracin influence ended with status {status}")
        story.show(self.directory, train, test)
        print(f"\nAll of it took {time.monotonic() - self.invocation.started:.0f} s.")


def _check_installed() -> None:
    for name, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"the demo needs {package}, which is not installed: pip install 'tracin-beam[demo]'"
            )


run = Demo.main

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
