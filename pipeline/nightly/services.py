"""Dataflow and Cloud Storage, as far as a night asks them; unsteady answers are asked for again."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import requests
from google.api_core import exceptions
from google.api_core.retry import Retry, if_transient_error
from google.auth.exceptions import GoogleAuthError
from google.cloud import storage

# What a request raises at last.
SERVICE_ERRORS = (exceptions.GoogleAPIError, GoogleAuthError, requests.RequestException)


def is_transient(error: Exception) -> bool:
    """Whether a request may succeed when it is sent again."""
    return (
        if_transient_error(error)
        or isinstance(
            error, (exceptions.BadGateway, exceptions.GatewayTimeout, requests.exceptions.Timeout)
        )
        or (isinstance(error, GoogleAuthError) and error.retryable)
    )


# Eight pauses of at most a minute: a night lasts for hours, and services recover in minutes.
RETRY = Retry(predicate=is_transient, initial=2.0, maximum=60.0, multiplier=2.0, timeout=300.0)


class Dataflow:
    """The jobs of one project and region, over Dataflow's REST interface."""

    def __init__(
        self, session: requests.Session, project: str, region: str, retry: Retry = RETRY
    ) -> None:
        self._session = session
        self._location = (
            "https://dataflow.googleapis.com/v1b3/"
            f"projects/{quote(project)}/locations/{quote(region)}"
        )
        self._retry = retry

    def launch(self, launch_parameter: dict[str, Any]) -> str | None:
        """Launches a Flex Template.

        Returns:
            The job's id; None where a job of this name is active already.
        """
        try:
            answer = self._ask(
                "POST", "/flexTemplates:launch", json={"launchParameter": launch_parameter}
            )
        except exceptions.Conflict:
            return None
        return str(answer["job"]["id"])

    def active_jobs(self) -> dict[str, str]:
        """Returns the ids of the active jobs by their names."""
        jobs: dict[str, str] = {}
        page = ""
        while True:
            answer = self._ask("GET", "/jobs", params={"filter": "ACTIVE", "pageToken": page})
            jobs |= {job["name"]: job["id"] for job in answer.get("jobs", ())}
            page = answer.get("nextPageToken", "")
            if not page:
                return jobs

    def state(self, job: str) -> str:
        """Returns the state of a job, such as `JOB_STATE_RUNNING`."""
        # A job that has just been made may have no state yet.
        return str(self._ask("GET", f"/jobs/{quote(job)}").get("currentState", "JOB_STATE_UNKNOWN"))

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            response = self._session.request(method, self._location + path, **arguments)
            if not response.ok:
                raise exceptions.from_http_response(response)
            answer: dict[str, Any] = response.json()
            return answer

        answer: dict[str, Any] = self._retry(ask)()
        return answer


class Results:
    """The bucket of the nights' results."""

    def __init__(self, client: storage.Client, bucket: str, retry: Retry = RETRY) -> None:
        self._client = client
        self._bucket = client.bucket(bucket)
        self._retry = retry

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        return bool(self._retry(self._bucket.blob(name).exists)(retry=None))

    def directories(self, prefix: str) -> list[str]:
        """Returns the directories directly below a prefix, sorted, with a slash at their ends."""

        def listed() -> list[str]:
            blobs = self._client.list_blobs(
                self._bucket, prefix=f"{prefix}/", delimiter="/", retry=None
            )
            return sorted({name for page in blobs.pages for name in page.prefixes})

        names: list[str] = self._retry(listed)()
        return names

    def read(self, name: str) -> dict[str, Any] | None:
        """Reads a JSON object; None where there is none."""
        try:
            content = self._retry(self._bucket.blob(name).download_as_bytes)(retry=None)
        except exceptions.NotFound:
            return None
        document: dict[str, Any] = json.loads(content)
        return document

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Writes a JSON object, over an earlier one."""
        self._retry(self._bucket.blob(name).upload_from_string)(
            json.dumps(document, indent=2), content_type="application/json", retry=None
        )
