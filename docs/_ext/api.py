"""The directive `api`: public names of `transforms` with signatures and docstrings.

    ```{api} ModelConfig load_model
    ```

A name without docstring, and a field or parameter that its docstring leaves out, fail the build, as
does a public name that the page of the API leaves out.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import griffe

import transforms

# Sections of docstrings that list names, as griffe calls them.
_LISTS = ("attributes", "parameters")
_HEADINGS = {"returns": "Returns", "yields": "Yields", "raises": "Raises"}
# What Beam calls of a transform, and what Python calls of an object.
_INTERNAL = {"expand", "default_label", "process", "setup", "teardown"}


class Undocumented(Exception):
    """Something public has no docstring, or a docstring leaves something out."""


def left_out(page: str) -> list[str]:
    """Returns the public names that a page with directives `api` does not include."""
    included = " ".join(re.findall(r"^```\{api\} (.*)$", page, re.MULTILINE)).split()
    return [name for name in transforms.__all__ if name not in included]


def entry(name: str) -> str:
    """Returns the entry of a public name as MyST Markdown: signature, docstring and members."""
    thing = getattr(transforms, name)
    kind = "class" if inspect.isclass(thing) else "function"
    body = "\n".join(_body(name, thing))
    return f"::::{{py:{kind}}} {name}{_signature(thing)}\n:module: transforms\n\n{body}\n::::\n"


def _body(name: str, thing: Any) -> Iterator[str]:
    yield from _docstring(name, thing)
    names = _names(thing)
    if missing := [one for one in names if not re.search(rf"\b{one}\b", thing.__doc__)]:
        raise Undocumented(f"{name}: the docstring leaves out {', '.join(missing)}")
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            if not member.startswith("_") and member not in _INTERNAL and member not in names:
                yield from _member(name, member, value)


def _member(owner: str, name: str, value: Any) -> Iterator[str]:
    function = value
    if isinstance(value, staticmethod | classmethod):
        function = value.__func__
    if isinstance(value, property):
        yield f":::{{py:property}} {name}\n"
        function = value.fget
    elif inspect.isfunction(function):
        yield f":::{{py:method}} {name}{_signature(function, bound=True)}\n"
    else:
        return
    yield from _docstring(f"{owner}.{name}", function)
    yield ":::\n"


def _docstring(name: str, thing: Any) -> Iterator[str]:
    """Yields a docstring as Markdown."""
    text = thing.__doc__ and inspect.cleandoc(thing.__doc__)
    # A dataclass without docstring has its signature as one.
    if not text or text.startswith(f"{name}("):
        raise Undocumented(f"{name} has no docstring")
    logging.getLogger("griffe").setLevel(logging.ERROR)
    for section in griffe.Docstring(text, lineno=1).parse("google"):
        kind = section.kind.value
        if kind == "text":
            yield f"{section.value}\n"
        elif kind in _LISTS:
            yield f"**{'Fields' if kind == 'attributes' else 'Parameters'}**\n"
            types = getattr(thing, "__annotations__", {})
            for item in section.value:
                # griffe takes all after the first of several names for a type.
                several = item.name.endswith(",")
                names = f"{item.name} {item.annotation}".split(", ") if several else [item.name]
                yield _item(names, types.get(names[0]), item.description)
            yield ""
        elif kind in _HEADINGS:
            for item in section.value:
                raised = f" `{item.annotation}`" if kind == "raises" else ""
                yield f"**{_HEADINGS[kind]}**{raised}: {_line(item.description)}\n"
        elif kind == "examples":
            yield "\n".join(["```python", *(value for _, value in section.value), "```\n"])
        else:
            raise Undocumented(f"{name}: unexpected section {kind!r} in the docstring")


def _item(names: list[str], annotation: Any, description: str) -> str:
    shown = ", ".join(f"`{name}`" for name in names)
    kind = f" (`{annotation}`)" if isinstance(annotation, str) else ""
    return f"- {shown}{kind}: {_line(description)}"


def _line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _names(thing: Any) -> list[str]:
    """Returns the fields of a class, or the parameters of a function."""
    if dataclasses.is_dataclass(thing):
        return [f.name for f in dataclasses.fields(thing) if not f.name.startswith("_")]
    if inspect.isclass(thing):
        return []
    return list(inspect.signature(thing).parameters)


def _signature(thing: Any, bound: bool = False) -> str:
    """Returns a signature without types, which the lists of fields have."""
    parameters = list(inspect.signature(thing).parameters.values())
    if bound and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    return f"({', '.join(map(_parameter, parameters))})"


def _parameter(parameter: inspect.Parameter) -> str:
    empty = inspect.Parameter.empty
    name = str(parameter.replace(annotation=empty, default=empty))
    if parameter.default is empty:
        return name
    # Of configurations, and of defaults that a function makes, the signature does not show all.
    made = repr(parameter.default) == "<factory>" or dataclasses.is_dataclass(parameter.default)
    return f"{name}={'...' if made else repr(parameter.default)}"


def setup(app: Any) -> dict[str, bool]:
    """Registers the directive with Sphinx."""
    from sphinx.util.docutils import SphinxDirective

    class Api(SphinxDirective):
        """Includes the entries of public names, in this order."""

        required_arguments = 1
        optional_arguments = 100

        def run(self) -> list[Any]:
            try:
                if left := left_out(pathlib.Path(self.env.doc2path(self.env.docname)).read_text()):
                    raise Undocumented(f"the page leaves out {', '.join(left)}")
                text = "\n".join(entry(name) for name in self.arguments)
            except (Undocumented, AttributeError) as error:
                raise self.error(str(error)) from error
            self.env.note_reread()
            return self.parse_text_to_nodes(text)

    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
