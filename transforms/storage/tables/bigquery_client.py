"""Clients of BigQuery, and jobs that run once however often they are asked for."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import google.auth
from apache_beam.internal.gcp import auth
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import Conflict, NotFound
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import bigquery
from google.cloud.bigquery import QueryJobConfig

from transforms.core.errors import InputError
from transforms.storage import filesystems

# The variable that Google's own library reads: a stand-in needs no credentials.
_EMULATOR = "BIGQUERY_EMULATOR_HOST"
# The reasons of failed jobs after which another job may succeed, as BigQuery's "Error messages"
# lists them, with and without the prefix of jobs.
_PASSING = (
    "backendError",
    "internalError",
    "rateLimitExceeded",
    "jobBackendError",
    "jobInternalError",
    "jobRateLimitExceeded",
)
# A job that exists may not be visible for a moment.
_VISIBLE = Retry(if_exception_type(NotFound), timeout=60)


@dataclasses.dataclass(frozen=True)
class JobTuning:
    """The patience with jobs.

    Attributes:
        attempts: jobs that may fail for reasons that pass, before the last failure is reported.
        pause: seconds between looks at a job, and before another job: a merge takes several.
    """

    attempts: int = 3
    pause: float = 2.0


DEFAULT_TUNING = JobTuning()


def check_credentials() -> None:
    """Checks that there are credentials, for which Beam's own search would take half a minute.

    Raises:
        InputError: there are none.
    """
    if os.environ.get(_EMULATOR):
        return
    try:
        google.auth.default()
    except DefaultCredentialsError as error:
        raise InputError(
            f"`output_table` needs Google's credentials ({filesystems.describe_error(error)}): run "
            "`gcloud auth application-default login`, or name a key's file by the environment "
            "variable GOOGLE_APPLICATION_CREDENTIALS"
        ) from error


def connect(project: str, options: PipelineOptions) -> bigquery.Client:
    """Returns a client with the credentials that Beam reads and writes files with; its jobs are the
    project's.

    Raises:
        InputError: there are no credentials.
    """
    check_credentials()
    beams = None if os.environ.get(_EMULATOR) else auth.get_service_credentials(options)
    credentials = beams.get_google_auth_credentials() if beams else AnonymousCredentials()
    return bigquery.Client(project, credentials)


def run_once(
    client: bigquery.Client,
    sql: str,
    config: QueryJobConfig,
    name: str,
    location: str,
    is_done: Callable[[], bool],
    tuning: JobTuning,
) -> str | None:
    """Runs a statement by a job of this name, or joins the job that already does; returns the
    message of its failure, or None.

    Two jobs of one name cannot exist, so a second attempt joins the first one's job instead of
    racing it: two statements that each see nothing to delete would both insert. Names are numbered,
    for jobs after a failure. `is_done` tells whether the statement's effect, by the job of an
    earlier attempt, is still there.

    Raises:
        one of `filesystems.STORE_ERRORS`: BigQuery refuses the job.
    """
    failures = 0
    for number in itertools.count():
        job: Any
        try:
            job = client.query(
                sql, config, job_id=f"{name}-{number}", location=location, job_retry=None
            )
            joined = False
        except Conflict:
            job = _VISIBLE(client.get_job)(f"{name}-{number}", location=location)
            joined = True
        error = _error(job, tuning.pause)
        if error is None:
            if not joined or is_done():
                return None
        elif not joined:
            failures += 1
            if failures == tuning.attempts or not _passes(error):
                return error["message"]
            time.sleep(tuning.pause)
    raise AssertionError("numbers have no end")


def _error(job: Any, pause: float) -> dict[str, str] | None:
    """Waits for a job's end; returns its error, if any."""
    while not job.done():
        time.sleep(pause)
    error: dict[str, str] | None = job.error_result
    return error


def _passes(error: dict[str, str]) -> bool:
    """Returns whether another job may succeed after one that failed with this error."""
    return error.get("reason") in _PASSING or "concurrent update" in error.get("message", "")
