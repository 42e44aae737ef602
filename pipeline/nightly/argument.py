"""What a night is asked for: one JSON object, checked before anything is launched."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from transforms.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class NightlyConfig:
    """The argument of a night, with the fields of its JSON object.

    Attributes:
        bucket: name of the bucket of the results.
        prefix: directory in the bucket; a night's results are in `gs://BUCKET/PREFIX/DATE/`.
        templates: directory of the templates, `gs://…`.
        region: of the jobs.
        environment: of the jobs, fields of Dataflow's `FlexTemplateRuntimeEnvironment`:
            `serviceAccountEmail`, `tempLocation`, `maxWorkers`, …
        model: parameters of both extractions: `checkpoints`, `id_key`, …
        train: further parameters of the training set's extraction: `examples`.
        date: of the night, such as 2026-11-25.
        test: likewise for the test set; without one there is no influence.
        score: further parameters of the influence, such as `k`.
        audit: further parameters of the audit, such as `min_suspicion`.
        drift: parameters of an audit that has an earlier one to compare with: `max_shift`, …
        reuse: whether features of the last night are copied; false where each night has other
            checkpoints.
        attempts: how often a job is tried.
        hours: how long each job may take.
        project: of the jobs; that of the credentials where it is left out.
    """

    bucket: str
    prefix: str
    templates: str
    region: str
    environment: Mapping[str, Any]
    model: Mapping[str, str]
    train: Mapping[str, str]
    date: str
    test: Mapping[str, str] | None = None
    score: Mapping[str, str] = dataclasses.field(default_factory=dict)
    audit: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drift: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reuse: bool = True
    attempts: int = 2
    hours: int = 24
    project: str | None = None

    def __post_init__(self) -> None:
        for name in ("bucket", "prefix", "templates", "region", "date"):
            self._require(name, isinstance(getattr(self, name), str), "a text")
        for name in ("environment", "model", "train", "test", "score", "audit", "drift"):
            value = getattr(self, name)
            if value is not None:
                self._require(name, isinstance(value, Mapping), "an object")
        for name in ("attempts", "hours"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            self._require(name, whole, "a whole number of at least 1")
        self._require("reuse", isinstance(self.reuse, bool), "true or false")
        if not _is_date(self.date):
            raise InputError(f"`date`: expected a date such as 2026-11-25, found {self.date!r}")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"`{name}`: expected {expected}, found {getattr(self, name)!r}")

    @property
    def directory(self) -> str:
        """The night's directory in the bucket, with a slash at its end."""
        return f"{self.prefix}/{self.date}/"

    @property
    def root(self) -> str:
        """The night's directory, `gs://…/`."""
        return f"gs://{self.bucket}/{self.directory}"


FIELDS = tuple(field.name for field in dataclasses.fields(NightlyConfig))
_REQUIRED = tuple(
    field.name
    for field in dataclasses.fields(NightlyConfig)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
)


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) is not None


def read_argument(argument: str, date: str | None, today: str) -> NightlyConfig:
    """Returns the configuration that an argument describes.

    Args:
        argument: a JSON object, or the name of a file that holds one.
        date: another date than the argument's.
        today: the date where neither names one.

    Raises:
        InputError: the file cannot be read, is no JSON object, or a field is unknown, missing or
            of another type.
    """
    document = _parse(argument)
    # A field that is null is one that is left out.
    fields = {name: value for name, value in document.items() if value is not None}
    fields["date"] = date or fields.get("date", today)
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise InputError(f"the argument has no field {unknown[0]!r}; it has {', '.join(FIELDS)}")
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise InputError(f"the argument needs {', '.join(f'`{name}`' for name in missing)}")
    return NightlyConfig(**fields)


def _parse(argument: str) -> dict[str, Any]:
    text, source = argument, "the argument"
    if not argument.lstrip().startswith("{"):
        source = argument
        try:
            text = pathlib.Path(argument).read_text()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{argument!r} is no JSON object and cannot be read: {error}"
            ) from None
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{source}: expected a JSON object")
    return document
