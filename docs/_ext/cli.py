"""The reference of the command line in a page, made from the declarations of flags.

    ```{cli}
    ```

stands for it. A flag or a command without help fails the build.
"""

from __future__ import annotations

from typing import Any

from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.reference import reference

_MARK = "```{cli}\n```\n"


def undocumented() -> list[str]:
    """Returns the flags and commands that have no help."""
    missing = [command for command in COMMANDS if not COMMANDS[command].summary]
    for command in COMMANDS:
        missing += [f"{command} {flag.option}" for flag in flags_of(command) if not flag.help]
    return missing


def include(page: str) -> str:
    """Returns a page with the reference, without its heading, where it is asked for."""
    return page.replace(_MARK, reference().split("\n", 1)[1].lstrip())


def setup(app: Any) -> dict[str, bool]:
    """Makes Sphinx read pages with the reference in them."""
    from sphinx.errors import ExtensionError

    def read(_: Any, docname: str, source: list[str]) -> None:
        if _MARK in source[0]:
            if missing := undocumented():
                raise ExtensionError(f"{docname}: without help: {', '.join(missing)}")
            source[0] = include(source[0])

    # A directive could not make sections below the page's heading.
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
