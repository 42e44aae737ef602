"""Kinds of values: one object parses a value, names its metavar and its template parameter."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar

_N = TypeVar("_N", int, float)

ParameterType = Literal[
    "BIGQUERY_TABLE",
    "BOOLEAN",
    "ENUM",
    "GCS_READ_FILE",
    "GCS_READ_FOLDER",
    "GCS_WRITE_FOLDER",
    "NUMBER",
    "TEXT",
]

# A Google Cloud project's id, perhaps with the domain of an organisation in front.
PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value that flags take.

    Attributes:
        metavar: the value's name in the help, unless a flag has another.
        parse: turns a word of the command line into the value, or raises
            `argparse.ArgumentTypeError` with what it expects.
        parameter: Dataflow's `paramType` of such a template parameter.
        regex: what all of a template parameter's value must match, in the common part of RE2's,
            Java's and Python's syntax.
        choices: the values, where they are few; they replace the metavar.
        switch: whether the flag may stand alone, which means true.
    """

    metavar: str
    parse: Callable[[str], Any]
    parameter: ParameterType
    regex: str
    choices: tuple[str, ...] = ()
    switch: bool = False


def choice(*choices: str) -> Kind:
    """Returns the kind of a flag that takes one of a few words."""
    return Kind("", str, "ENUM", f"({'|'.join(choices)})", choices)


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return values[text.lower()]


def _number(text: str, kind: type[_N], low: float, high: float, expected: str) -> _N:
    """Parses a number within limits, for a flag that takes `expected`."""
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def _positive(text: str) -> int:
    return _number(text, int, 1, float("inf"), "a whole number of at least 1")


def _whole(text: str) -> int:
    return _number(text, int, 0, float("inf"), "a whole number of at least 0")


def _count(text: str) -> int:
    return _number(text, int, 1, 10**10, "a whole number from 1 to 10,000,000,000")


def _fraction(text: str) -> float:
    return _number(text, float, 0, 1, "a number from 0 to 1")


def _gigabytes(text: str) -> float:
    low, high = sys.float_info.min, sys.float_info.max
    return _number(text, float, low, high, "a number of gigabytes above 0")


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(rate) for rate in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected numbers separated by commas, found {text!r}"
        ) from error


def _directory(text: str) -> str:
    if not text or any(character in text for character in "*?[]{}"):
        raise argparse.ArgumentTypeError(
            f"expected a directory, without glob characters, found {text!r}"
        )
    return text


def _table(text: str) -> str:
    if not re.fullmatch(PROJECT.pattern + r":\w{1,1024}\.[\w-]{1,1024}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected PROJECT:DATASET.TABLE, found {text!r}")
    return text


def _date(text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2026-03-31, found {text!r}"
        ) from error


def _accelerator(text: str) -> str:
    if not re.fullmatch(r"type:[\w.-]+;count:[1-9]\d*(;install-nvidia-driver(:[\w.-]+)?)?", text):
        raise argparse.ArgumentTypeError(
            "expected type:NAME;count:N, perhaps followed by ;install-nvidia-driver, found "
            f"{text!r}; quote it, or the shell ends at the ;"
        )
    return text


_FORMATS = ("npy", "parquet", "tfrecord", "faiss", "vertex")


def _formats(text: str) -> tuple[str, ...]:
    names = _names(text)
    if not names or not set(names) <= set(_FORMATS):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(_FORMATS)}, found {text!r}")
    return tuple(sorted(set(names)))


def _ids(text: str) -> tuple[str, ...]:
    ids = _names(text)
    if not ids:
        raise argparse.ArgumentTypeError(f"expected ids separated by commas, found {text!r}")
    return ids


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


_NUMBER = r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?"
_PATH = r"gs://[^,\r\n]+"
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_LINE = r"[^\r\n]+"
_FOLDER = r"gs://[^*?\[\]{}\r\n]+"
_LIST = r"[^,\r\n]+(,[^,\r\n]+)*"

SWITCH = Kind("true|false", _boolean, "BOOLEAN", r"(true|false)", switch=True)
BOOLEAN = Kind("true|false", _boolean, "BOOLEAN", r"(true|false)")

POSITIVE = Kind("N", _positive, "NUMBER", r"[1-9][0-9]*")
WHOLE = Kind("N", _whole, "NUMBER", r"[0-9]+")
COUNT = Kind("N", _count, "NUMBER", r"[1-9][0-9]{0,10}")
FRACTION = Kind(
    "X", _fraction, "NUMBER", r"(0?\.[0-9]+|0(\.[0-9]*)?|1(\.0*)?|[0-9](\.[0-9]*)?[eE]-[0-9]+)"
)
GIGABYTES = Kind(
    "GB", _gigabytes, "NUMBER", r"([0-9]*[1-9][0-9]*(\.[0-9]*)?|[0-9]*\.[0-9]*[1-9][0-9]*)"
)
RATES = Kind("RATES", _rates, "TEXT", rf"{_NUMBER}(,{_NUMBER})*")

INPUT_DIRECTORY = Kind("DIR", _directory, "GCS_READ_FOLDER", _FOLDER)
OUTPUT_DIRECTORY = Kind("DIR", _directory, "GCS_WRITE_FOLDER", _FOLDER)
FILE = Kind("FILE", str, "GCS_READ_FILE", _FOLDER)
# Several paths, with globs: none of Dataflow's pickers gives that.
GLOBS = Kind("GLOBS", str, "TEXT", rf"{_PATH}(,\s*{_PATH})*")

KEY = Kind("KEY", str, "TEXT", _LINE)
KEYS = Kind("KEYS", _names, "TEXT", _LIST)
NAME = Kind("NAME", str, "TEXT", _LINE)
ID = Kind("ID", str, "TEXT", _LINE)
IDS = Kind("IDS", _ids, "TEXT", _LIST)
LOSS = Kind("LOSS", str, "TEXT", _LINE)
MODULES = Kind("MODULES", _names, "TEXT", _LIST)
FUNCTION = Kind("MODULE:FUNCTION", str, "TEXT", _FUNCTION)
MODEL_SOURCE = Kind("SOURCE", str, "TEXT", rf"({_PATH}|{_FUNCTION})")
FORMATS = Kind("FORMATS", _formats, "TEXT", r"[a-z]+(,[a-z]+)*")

TABLE = Kind(
    "PROJECT:DATASET.TABLE",
    _table,
    "BIGQUERY_TABLE",
    PROJECT.pattern + r":[A-Za-z0-9_]{1,1024}\.[A-Za-z0-9_-]{1,1024}",
)
DATE = Kind("YYYY-MM-DD", _date, "TEXT", r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
ACCELERATOR = Kind(
    "HINT",
    _accelerator,
    "TEXT",
    r"type:[\w.-]+;count:[1-9][0-9]*(;install-nvidia-driver(:[\w.-]+)?)?",
)
