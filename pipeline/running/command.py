"""The skeleton of every command: parse, prepare, execute."""

from __future__ import annotations

import abc
import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.flags import parser
from pipeline.running.beam_options import beam_options
from pipeline.running.outcomes import exit_with

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command line, parsed.

    Attributes:
        args: the settings of our flags.
        flags: the words that are Beam's.
        beam: Beam's options, made from them.
        started: the start of the command, of `time.monotonic`.
    """

    args: argparse.Namespace
    flags: Sequence[str]
    beam: PipelineOptions
    started: float


class Command(abc.ABC):
    """A command of the program; each fills the parts that it needs.

    `main` parses the flags, `prepare` finds and checks what they name, and `execute` does the work.
    """

    name: ClassVar[str]

    @classmethod
    def main(cls, argv: Sequence[str]) -> int:
        """Runs the command with these words; returns its exit status."""
        return exit_with(cls.name, lambda: cls._start(argv))

    @classmethod
    def _start(cls, argv: Sequence[str]) -> None:
        started = time.monotonic()
        args, flags = parser.parse(cls.name, argv)
        cls.prepare(Invocation(args, flags, beam_options(flags), started)).execute()

    @classmethod
    @abc.abstractmethod
    def prepare(cls, invocation: Invocation) -> Self:
        """Turns flags into configurations, and finds and checks what they name.

        Raises:
            InputError: something that the user gave cannot be used.
        """

    @abc.abstractmethod
    def execute(self) -> None:
        """Does the work and prints its summary.

        Raises:
            RunFailed: a run was started and ended without a result.
        """
