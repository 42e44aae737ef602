"""Dockerfiles, read as far as ours go."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATES = ROOT / "templates"


@dataclasses.dataclass(frozen=True)
class Copy:
    """A COPY: what, where to, and out of which image, if not the context."""

    sources: tuple[str, ...]
    target: str
    image: str | None


@dataclasses.dataclass(frozen=True)
class Dockerfile:
    """Its instructions in order, arguments put in, each (instruction, rest of the line)."""

    instructions: tuple[tuple[str, str], ...]

    def of(self, name: str) -> list[str]:
        """What follows each instruction of a name."""
        return [rest for instruction, rest in self.instructions if instruction == name]

    def copies(self) -> list[Copy]:
        """Every COPY."""
        copies = []
        for rest in self.of("COPY"):
            words = shlex.split(rest)
            images = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
            paths = [word for word in words if not word.startswith("--")]
            copies.append(Copy(tuple(paths[:-1]), paths[-1], images[0] if images else None))
        return copies

    def environment(self) -> list[tuple[str, str]]:
        """Every variable that is set."""
        pairs = [word.split("=", 1) for rest in self.of("ENV") for word in shlex.split(rest)]
        return [(name, value) for name, value in pairs]

    def entry_point(self) -> list[str]:
        """What a container starts."""
        words: list[str] = json.loads(self.of("ENTRYPOINT")[-1])
        return words


def read(name: str, **arguments: str) -> Dockerfile:
    """Reads a Dockerfile of templates/, built with some arguments."""
    text = (TEMPLATES / name).read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", text)
    instructions = []
    for line in filter(str.strip, text.splitlines()):
        instruction, rest = line.split(None, 1)
        if instruction == "ARG":
            key, _, value = rest.partition("=")
            arguments.setdefault(key, value)
        elif instruction != "RUN":
            rest = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), rest)
        instructions.append((instruction, rest.strip()))
    return Dockerfile(tuple(instructions))


def tracked() -> list[str]:
    """The files of the checkout, without what git ignores."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def context(ignore: pathlib.Path) -> list[str]:
    """The files that a build sees: those that .dockerignore does not keep out, by its last rule
    that matches.
    """
    rules = [line for line in ignore.read_text().splitlines() if line and not line.startswith("#")]
    kept = []
    for path in tracked():
        parents = [path, *map(str, pathlib.PurePosixPath(path).parents)]
        out = False
        for rule in rules:
            pattern = rule.removeprefix("!").rstrip("/").removeprefix("**/")
            names = parents + (
                [part.rsplit("/", 1)[-1] for part in parents] if "**/" in rule else []
            )
            if any(fnmatch.fnmatchcase(one, pattern) for one in names):
                out = not rule.startswith("!")
        if not out:
            kept.append(path)
    return kept
