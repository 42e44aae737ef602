"""Jobs that run once: joined, repeated after failures that pass, and reported after others."""

from __future__ import annotations

from typing import Any

import google.auth
import pytest
from google.api_core.exceptions import Conflict
from google.auth.exceptions import DefaultCredentialsError
from google.cloud.bigquery import QueryJobConfig

from transforms.core.errors import InputError
from transforms.storage.tables import bigquery_client
from transforms.storage.tables.bigquery_client import JobTuning

PASSING = {"reason": "backendError", "message": "try again"}
LASTING = {"reason": "invalidQuery", "message": "no such column"}


class Job:
    """A job that is done at the second look."""

    def __init__(self, error: dict[str, str] | None) -> None:
        self.error_result = error
        self._looks = 0

    def done(self) -> bool:
        self._looks += 1
        return self._looks > 1


class Client:
    """A client whose new jobs end with these errors, and that has some jobs already."""

    def __init__(self, errors: list[dict[str, str] | None], existing: dict[str, Job]) -> None:
        self.errors = errors
        self.existing = existing
        self.started: list[str] = []

    def query(self, sql: str, config: Any, job_id: str, **_: Any) -> Job:
        if job_id in self.existing:
            raise Conflict("exists")
        self.started.append(job_id)
        return Job(self.errors.pop(0))

    def get_job(self, job_id: str, location: str) -> Job:
        return self.existing[job_id]


def run(
    errors: list[dict[str, str] | None],
    existing: dict[str, Job] | None = None,
    is_done: bool = False,
) -> tuple[str | None, list[str]]:
    client: Any = Client(errors, existing or {})
    tuning = JobTuning(attempts=3, pause=0.0)
    message = bigquery_client.run_once(
        client, "SELECT 1", QueryJobConfig(), "name", "EU", lambda: is_done, tuning
    )
    return message, client.started


@pytest.mark.parametrize(
    ("errors", "message", "jobs"),
    [
        ([None], None, 1),
        ([PASSING, None], None, 2),
        ([{"message": "aborted by concurrent update"}, PASSING, None], None, 3),
        ([PASSING, PASSING, PASSING], "try again", 3),
        ([PASSING, LASTING], "no such column", 2),
        ([LASTING], "no such column", 1),
    ],
)
def test_failures_that_pass_are_followed_by_another_job(
    errors: list[dict[str, str] | None], message: str | None, jobs: int
) -> None:
    assert run(list(errors)) == (message, [f"name-{i}" for i in range(jobs)])


def test_a_job_that_exists_is_joined() -> None:
    assert run([], {"name-0": Job(None)}, is_done=True) == (None, [])


def test_another_job_follows_one_whose_rows_are_gone_or_that_failed() -> None:
    assert run([None], {"name-0": Job(None)}, is_done=False) == (None, ["name-1"])
    assert run([None], {"name-0": Job(LASTING)}) == (None, ["name-1"])


def test_missing_credentials_name_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise DefaultCredentialsError("none here")

    monkeypatch.delenv("BIGQUERY_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", none)
    with pytest.raises(InputError, match="needs Google's credentials") as caught:
        bigquery_client.check_credentials()
    assert caught.value.field == "output_table"
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "http://localhost:1")
    bigquery_client.check_credentials()  # A stand-in needs none.
