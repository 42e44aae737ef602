"""The declaration of a flag, and the rules between flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.flags.declarations.kinds import Kind


class _Same:
    """Stands for the value of the declaration in a `Use`."""


SAME: Final = _Same()


@dataclasses.dataclass(frozen=True)
class Excludes:
    """Flags that a flag excludes, in commands that have both.

    Attributes:
        flags: names of the excluded flags.
        message: the error, with `{flag}` and `{other}` for the two as they are typed.
    """

    flags: tuple[str, ...]
    message: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """Flags of which a flag needs at least one, in commands that have any of them.

    Attributes:
        flags: names of the needed flags.
        message: the error after the flag's name.
    """

    flags: tuple[str, ...]
    message: str


@dataclasses.dataclass(frozen=True)
class Use:
    """A flag in one command, as far as it differs there from its declaration.

    Attributes:
        required: whether the command cannot do without it.
        group, help, default: what replaces the declaration's.
        kind: likewise.
        excludes, needs: rules of this command, which are added.
    """

    required: bool = False
    group: str | None = None
    help: str | None = None
    default: Any = SAME
    kind: Kind | None = None
    excludes: tuple[Excludes, ...] = ()
    needs: tuple[Needs, ...] = ()


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of one or more commands.

    Attributes:
        name: the flag without its dashes.
        kind: the kind of its values.
        help: one sentence without a full stop; `{default}` stands for the default.
        commands: the commands that have it, each with what differs there.
        group: the heading of the help under which it stands; none if empty.
        default: the parsed value where the flag is absent.
        metavar: the value's name in the help, if it is another than the kind's.
        field: the setting's name in configurations and messages, if it is another than `name`.
        aliases: earlier names, which keep working and which the help leaves out.
        excludes, needs: rules between this flag and others.
        required: whether a command needs it; `Use.required` decides.
        positional: whether it is typed as a word without a name.
    """

    name: str
    kind: Kind
    help: str
    commands: Mapping[str, Use]
    group: str = ""
    default: Any = None
    metavar: str = ""
    field: str = ""
    aliases: tuple[str, ...] = ()
    excludes: tuple[Excludes, ...] = ()
    needs: tuple[Needs, ...] = ()
    required: bool = False
    positional: bool = False

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return self.name if self.positional else f"--{self.name}"

    @property
    def setting(self) -> str:
        """The name of the setting that the flag gives a value."""
        return self.field or self.name

    @property
    def value_name(self) -> str:
        """The value's name in the help; a list of choices in braces, as `argparse` writes it."""
        if self.kind.choices:
            return "{" + ",".join(self.kind.choices) + "}"
        return self.metavar or self.kind.metavar

    @property
    def text(self) -> str:
        """The help with the default in it."""
        return self.help.replace("{default}", str(self.default))

    @property
    def default_text(self) -> str | None:
        """The default as it is typed; None where the flag's absence is no value."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if self.default is None or self.default == ():
            return None
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default)

    def within(self, command: str) -> Flag:
        """Returns the flag as a command has it."""
        use = self.commands[command]
        return dataclasses.replace(
            self,
            required=use.required,
            group=self.group if use.group is None else use.group,
            help=use.help or self.help,
            default=self.default if use.default is SAME else use.default,
            kind=use.kind or self.kind,
            excludes=self.excludes + use.excludes,
            needs=self.needs + use.needs,
        )


REQUIRED: Final = Use(required=True)


def commands(*names: str) -> dict[str, Use]:
    """Returns uses of a flag that is the same in several commands."""
    return dict.fromkeys(names, Use())


def required_by(*names: str) -> dict[str, Use]:
    """Returns uses of a flag that several commands cannot do without."""
    return dict.fromkeys(names, REQUIRED)


def names_of(flags: Sequence[Flag]) -> tuple[str, ...]:
    """Returns the names of flags."""
    return tuple(flag.name for flag in flags)
