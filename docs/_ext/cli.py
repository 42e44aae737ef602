"""The directive `cli`: the reference of the command line, made from the declarations of flags."""

from __future__ import annotations

from typing import Any

from pipeline.flags.declarations.commands import COMMANDS, flags_of
from pipeline.flags.reference import reference


def undocumented() -> list[str]:
    """Returns the flags and commands that have no help."""
    missing = [command for command in COMMANDS if not COMMANDS[command].summary]
    for command in COMMANDS:
        missing += [f"{command} {flag.option}" for flag in flags_of(command) if not flag.help]
    return missing


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive with Sphinx."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class CommandLine(SphinxDirective):
        """Includes a section for each command."""

        def run(self) -> list[Any]:
            if missing := undocumented():
                raise self.error(f"without help: {', '.join(missing)}")
            # The page has the heading; those of the commands are one level below it.
            _, text = reference().split("\n", 1)
            lines = [line.removeprefix("#") for line in text.splitlines()]
            node = nodes.Element()
            source = "pipeline.flags.reference"
            self.state.nested_parse(StringList(lines, source=source), 0, node, match_titles=True)
            return node.children

    app.add_directive("cli", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
