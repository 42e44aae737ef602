"""The command line: `tracin COMMAND --flag=value …`."""

from __future__ import annotations

import contextlib
import gc
import glob
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from pipeline.flags import parser
from pipeline.flags.declarations.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0 done, 1 the run failed, 2 nothing was started,
    3 a threshold was crossed.
    """
    try:
        status = _main(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` does; nothing more can be told, at the program's
        # end neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"tracin-beam {version('tracin-beam')}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        print(
            f"tracin: there is no command {command!r}; the commands are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    # Flags are looked at before anything heavy is imported.
    parser.parse(command, words[1:])
    computes = COMMANDS[command].computes
    with (
        _uncollected(),
        _told(f"loading {'TensorFlow and ' if computes else ''}Apache Beam …"),
        _quiet_import(),
    ):
        module = importlib.import_module(f"pipeline.commands.{command}")
        if computes:
            importlib.import_module("tensorflow").config.list_physical_devices()
    # Where people keep the modules that --parse_fn, --model and --import name. Last, so that it
    # shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    status: int = module.run(words[1:])
    return status


def _usage() -> str:
    commands = "\n".join(f"  {name:<10} {declared.summary}" for name, declared in COMMANDS.items())
    return (
        "usage: tracin COMMAND --flag=value …\n\n"
        "Which training examples made the model say this, and which of them are wrong?\n\n"
        f"commands:\n{commands}\n\n"
        "tracin COMMAND --help lists a command's flags."
    )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python's garbage collector away from what the block makes, then and later.

    TensorFlow, Keras and Beam are very many objects that stay; to look through all of them time and
    again takes seconds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _told(text: str) -> Iterator[None]:
    """Shows a line at a terminal while the block runs, since seconds without a word feel like a
    fault.
    """
    if not sys.stderr.isatty():
        yield
        return
    print(text, end="", flush=True, file=sys.stderr)
    try:
        yield
    finally:
        print("\r\033[K", end="", flush=True, file=sys.stderr)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps TensorFlow's C++ libraries from complaining of the GPU that is not there, which they do
    before any log level counts.

    Where there is one, what they say of it may matter.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if glob.glob("/dev/nvidia*"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
