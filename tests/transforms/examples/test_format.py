"""Settings of a format that are refused."""

from __future__ import annotations

import pytest

from tests.sample_examples import PIXELS
from transforms.core.errors import InputError
from transforms.examples.format import ExampleFormat, resolve_function


def test_a_kept_key_that_would_overwrite_a_field_is_refused() -> None:
    with pytest.raises(InputError, match="offset would overwrite") as caught:
        ExampleFormat((PIXELS,), keep_keys=("city", "offset"))
    assert caught.value.field == "keep_keys"


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "math:no_such_function", "math", "math:pi", ":f"]
)
def test_a_function_that_cannot_be_imported_is_named_by_its_setting(name: str) -> None:
    with pytest.raises(InputError, match=f"`parse_fn='{name}'`") as caught:
        resolve_function(name, "parse_fn")
    assert caught.value.field == "parse_fn"
