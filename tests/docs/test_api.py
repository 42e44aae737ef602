"""The page of the API has every public name, with everything that its docstring says."""

from __future__ import annotations

import dataclasses
import pathlib

import api
import pytest

import transforms

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "api.md").read_text()


@dataclasses.dataclass(frozen=True)
class Scale:
    """How numbers are scaled.

    Attributes:
        factor: a positive number.
        low, high: bounds
            of the result.

    Raises:
        InputError: `factor` is not positive.
    """

    factor: float
    low: float = 0.0
    high: float = 1.0

    def apply(self, number: float) -> float:
        """Returns a scaled number.

        Args:
            number: any number.
        """
        return number


class Bare:
    pass


@pytest.fixture(autouse=True)
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    for thing in (Scale, Bare):
        monkeypatch.setattr(transforms, thing.__name__, thing, raising=False)


def test_an_entry_has_signature_fields_errors_and_methods() -> None:
    assert api.entry("Scale") == (
        "::::{py:class} Scale(factor, low=0.0, high=1.0)\n"
        ":module: transforms\n"
        "\n"
        "How numbers are scaled.\n"
        "\n"
        "**Fields**\n"
        "\n"
        "- `factor` (`float`): a positive number.\n"
        "- `low`, `high` (`float`): bounds of the result.\n"
        "\n"
        "**Raises** `InputError`: `factor` is not positive.\n"
        "\n"
        ":::{py:method} apply(number)\n"
        "\n"
        "Returns a scaled number.\n"
        "\n"
        "**Parameters**\n"
        "\n"
        "- `number` (`float`): any number.\n"
        "\n"
        ":::\n"
        "\n"
        "::::\n"
    )


def test_a_name_without_docstring_is_an_error() -> None:
    with pytest.raises(api.Undocumented, match="Bare has no docstring"):
        api.entry("Bare")


def test_a_field_that_the_docstring_leaves_out_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Scale, "__doc__", "How numbers are scaled, by a factor.")
    with pytest.raises(api.Undocumented, match="Scale: the docstring leaves out low, high"):
        api.entry("Scale")


def test_the_page_has_every_public_name() -> None:
    assert api.left_out(PAGE) == []
    assert api.left_out("```{api} ModelConfig\n```") == transforms.__all__[1:]


@pytest.mark.parametrize("name", transforms.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert api.entry(name).startswith("::::{py:")
