"""Dataflow and Cloud Storage, as a night asks them."""

from __future__ import annotations

import pytest
import requests
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError, TransportError
from google.cloud import storage

from pipeline.nightly.services import Dataflow, Results, is_transient
from tests.fakes.dataflow_service import DataflowService, Job
from tests.fakes.nights import clear
from tests.fakes.object_store import BUCKET, Store


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (exceptions.TooManyRequests("no"), True),
        (exceptions.InternalServerError("no"), True),
        (exceptions.BadGateway("no"), True),
        (exceptions.ServiceUnavailable("no"), True),
        (exceptions.GatewayTimeout("no"), True),
        (requests.exceptions.ConnectionError("no"), True),
        (requests.exceptions.ReadTimeout("no"), True),
        (TransportError("no", retryable=True), True),
        (RefreshError("no", retryable=True), True),
        (RefreshError("no"), False),
        (exceptions.BadRequest("no"), False),
        (exceptions.Forbidden("no"), False),
        (exceptions.NotFound("no"), False),
        (exceptions.Conflict("no"), False),
        (ValueError("no"), False),
    ],
)
def test_what_may_pass_is_asked_again(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_every_page_of_the_active_jobs_is_read(store: Store) -> None:
    service = DataflowService(store)
    service.jobs = [Job(f"job-{n}", f"name-{n}", "done", "") for n in range(5)]
    service.jobs[3].left = 0
    dataflow = Dataflow(service.session(), "some-project", "europe-west1")
    assert dataflow.active_jobs() == {f"name-{n}": f"job-{n}" for n in (0, 1, 2, 4)}
    assert service.requests == ["GET /jobs"] * 2


def test_a_document_is_replaced_and_directories_are_listed(store: Store) -> None:
    clear(store)
    client = storage.Client(project="some-project", credentials=AnonymousCredentials())
    results = Results(client, BUCKET)
    assert results.read("nights/b/night.json") is None and results.directories("nights") == []
    for status in ("running", "done"):
        results.write("nights/b/night.json", {"status": status})
    results.write("nights/a/deep/night.json", {})
    results.write("nights/file.json", {})
    assert results.read("nights/b/night.json") == {"status": "done"}
    assert results.directories("nights") == ["nights/a/", "nights/b/"]
    assert results.exists("nights/b/night.json") and not results.exists("nights/b/night")
    # A browser and the workflow read it as JSON.
    described = store.described("nights/b/night.json")
    assert described and described["contentType"] == "application/json"
