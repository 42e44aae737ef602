"""Nights that tests run: the usual argument, and runs on stand-ins for Dataflow and the store."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from pipeline.nightly.argument import NightlyConfig
from pipeline.nightly.command import main
from pipeline.nightly.services import Dataflow, Results, is_transient
from tests.fakes.dataflow_service import DataflowService, Stopped
from tests.fakes.object_store import BUCKET, Store

# 2026-11-25T02:00:00Z.
NOW = 1795572000.0
ROOT = "gs://some-bucket/nightly/2026-11-25/"
LAST = "gs://some-bucket/nightly/2026-11-24/"
OUTCOME = "nightly/2026-11-25/night.json"
STEPS = ("train_features", "test_features", "influence", "audit")

ARGUMENT: dict[str, Any] = {
    "project": "some-project",
    "bucket": BUCKET,
    "prefix": "nightly",
    "templates": "gs://some-bucket/templates",
    "region": "europe-west1",
    "environment": {
        "serviceAccountEmail": "worker@some-project.iam.gserviceaccount.com",
        "tempLocation": "gs://some-bucket/tmp",
    },
    "model": {"checkpoints": "gs://data/checkpoints/*.keras", "id_key": "id"},
    "train": {"examples": "gs://data/train-*"},
    "test": {"examples": "gs://data/test-*"},
    "score": {"k": "20"},
    "audit": {"min_suspicion": "0.6"},
    "drift": {"max_shift": "0.2", "max_appeared_suspects": "100", "fail_on_drift": "true"},
}


def argument(**changes: Any) -> dict[str, Any]:
    """The usual argument, changed; None leaves a part out."""
    return {key: value for key, value in {**ARGUMENT, **changes}.items() if value is not None}


@dataclasses.dataclass
class Ended:
    """How a run ended.

    Attributes:
        status: the exit status; None where it was stopped.
        outcome: what it left in `night.json`.
        launched: job name and parameters of each launch.
        minutes: how long it took.
    """

    status: int | None
    outcome: dict[str, Any]
    launched: list[tuple[str, dict[str, str]]]
    minutes: float


class World:
    """A store with complete nights, and a Dataflow that writes to it."""

    def __init__(self, store: Store, *nights: str, **ends: list[str]) -> None:
        clear(store)
        self.store = store
        self.dataflow = DataflowService(store, **ends)
        for night in nights:
            for step in STEPS:
                store.put(f"nightly/{night}/{step}/manifest.json", b"{}")

    def remove(self, name: str) -> None:
        """Deletes an object."""
        self.store.ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}")

    def outcome(self) -> dict[str, Any]:
        """What `night.json` holds; empty without one."""
        status, _, content = self.store.ask("GET", f"/{BUCKET}/{OUTCOME}")
        document: dict[str, Any] = json.loads(content) if status == 200 else {}
        return document

    def night(
        self,
        *words: str,
        now: float = NOW,
        patience: float = 60.0,
        on_sleep: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> Ended:
        """Runs the command.

        Args:
            words: further words of the command line.
            now: when it begins, in seconds since the epoch.
            patience: for how many seconds an unsteady service is asked again, without a pause.
            on_sleep: called at each pause.
            changes: of the argument.
        """
        retry = Retry(
            predicate=is_transient, initial=0.0, maximum=0.0, multiplier=1.0, timeout=patience
        )
        time, before = now, len(self.dataflow.launched)

        def sleep(seconds: float) -> None:
            nonlocal time
            time += seconds
            on_sleep()

        def connect(config: NightlyConfig) -> tuple[Dataflow, Results]:
            client = storage.Client(project="some-project", credentials=AnonymousCredentials())
            dataflow = Dataflow(self.dataflow.session(), config.project or "", config.region, retry)
            return dataflow, Results(client, config.bucket, retry)

        status: int | None = None
        with contextlib.suppress(Stopped):
            status = main([json.dumps(argument(**changes)), *words], connect, sleep, lambda: time)
        launched = [(one["jobName"], one["parameters"]) for one in self.dataflow.launched[before:]]
        return Ended(status, self.outcome(), launched, (time - now) / 60)


def clear(store: Store) -> None:
    """Deletes every object, fault and request of a store."""
    for name in store.objects():
        store.ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}")
    store.faults.clear()
    store.requests.clear()
    store.broken.clear()
