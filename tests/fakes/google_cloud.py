"""Cloud Storage and BigQuery at once, and an environment in which Google's libraries use them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from apache_beam.internal.gcp import auth

from tests.fakes import bigquery_service, object_store
from tests.fakes.bigquery_service import Warehouse
from tests.fakes.object_store import Store


@contextlib.contextmanager
def without_credentials() -> Iterator[pytest.MonkeyPatch]:
    """An environment without credentials: Beam takes half a minute to see that there are none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "get_service_credentials", lambda options: None)
        yield patch


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    with object_store.running() as store, without_credentials() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{store.host}")
        yield store


@contextlib.contextmanager
def running() -> Iterator[tuple[Store, Warehouse]]:
    with (
        running_store() as store,
        bigquery_service.running(store) as warehouse,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("BIGQUERY_EMULATOR_HOST", f"http://{warehouse.host}")
        yield store, warehouse
