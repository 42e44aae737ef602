"""HTML pages, each a file that needs no other: a template with the common style and script.

Templates, style and script are files beside this module. All values are escaped. The content
security policy of a page allows its own script, by digest, and embedded pictures.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from transforms.reports.previews import Preview

# The first bytes of every PNG file.
_PNG = b"\x89PNG"


def render(
    template: str,
    preview: Callable[[Any], Preview],
    class_names: Sequence[str] | None,
    **values: Any,
) -> bytes:
    """Renders a page, in UTF-8.

    Args:
        template: file name of the template.
        preview: returns the preview of the example that a row of the template is about.
        class_names: names of all classes, or None for their numbers.
        values: further variables of the template.
    """

    def name(label: Any) -> str:
        if isinstance(label, (list, tuple)):
            return ", ".join(map(name, label)) or "none"
        if isinstance(label, float):
            return _short(label)
        return class_names[label] if class_names else str(label)

    script = _read("page.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.loader = jinja2.FunctionLoader(_read)
    environment.filters.update(
        name=name, preview=preview, data_uri=_data_uri, is_png=_is_png, short=_short
    )
    page = environment.get_template(template).render(
        style=Markup(_read("page.css")),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    return page.encode()


def _read(name: str) -> str:
    return (
        importlib.resources.files("transforms.reports").joinpath(name).read_text(encoding="utf-8")
    )


def _is_png(picture: bytes) -> bool:
    return picture.startswith(_PNG)


def _data_uri(picture: bytes) -> str:
    kind = "png" if _is_png(picture) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _short(value: float) -> str:
    """A number with three significant digits, or without decimals from 1,000 on."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
