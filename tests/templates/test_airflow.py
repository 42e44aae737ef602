"""The Airflow DAG: with Airflow where it is installed, else with stand-ins for the few names that
it takes from there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes import object_store
from tests.fakes.dockerfile import TEMPLATES
from tests.fakes.nights import ARGUMENT, OUTCOME, ROOT, World

PATH = TEMPLATES / "airflow" / "tracin_nightly.py"


class Operator:
    """As much of an operator as the DAG touches."""

    template_fields: tuple[str, ...] = ("project_id", "region", "job_name", "overrides")

    def __init__(self, **fields: Any) -> None:
        self.gcp_conn_id = "google_cloud_default"
        self.__dict__.update(fields)
        Dag.entered.tasks.append(self)

    def execute(self, context: Any) -> Any:
        raise NotImplementedError


class Dag:
    entered: Dag

    def __init__(self, dag_id: str, **fields: Any) -> None:
        self.dag_id, self.tasks = dag_id, list[Operator]()
        self.__dict__.update(fields)

    def __enter__(self) -> Dag:
        Dag.entered = self
        return self

    def __exit__(self, *_: Any) -> None:
        pass


def stand_ins() -> dict[str, types.ModuleType]:
    class AirflowException(Exception):
        pass

    names: dict[str, dict[str, Any]] = {
        "airflow": {"DAG": Dag},
        "airflow.exceptions": {
            "AirflowException": AirflowException,
            "AirflowFailException": type("AirflowFailException", (AirflowException,), {}),
        },
        "airflow.providers.google.cloud.hooks.gcs": {"GCSHook": None},
        "airflow.providers.google.cloud.operators.cloud_run": {
            "CloudRunExecuteJobOperator": Operator
        },
    }
    modules = {}
    for name, content in names.items():
        modules[name] = types.ModuleType(name)
        modules[name].__dict__.update(content)
    return modules


@pytest.fixture(scope="module")
def nightly() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("airflow.providers.google.cloud.operators.cloud_run")
        except ImportError:
            for name, module in stand_ins().items():
                patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("tracin_nightly", PATH)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "tracin_nightly", module)
        spec.loader.exec_module(module)
        yield module


# What Jinja fills in, for the night of the tests.
VALUES = {
    "var.value.tracin_nightly": json.dumps(ARGUMENT),
    **{f"var.json.tracin_nightly.{name}": value for name, value in ARGUMENT.items()},
    "ds": "2026-11-25",
    "run_id": "scheduled__2026-11-25T02:00:00+00:00",
    "ti.try_number": "1",
}


def filled(value: Any) -> Any:
    """A value with what Jinja fills in."""
    if isinstance(value, dict):
        return {key: filled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one) for one in value]
    if isinstance(value, str):
        for name, text in VALUES.items():
            value = value.replace("{{ " + name + " }}", str(text))
        assert "{{" not in value
    return value


@pytest.fixture
def task(nightly: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The task, with its templates filled in."""
    (task,) = nightly.dag.tasks
    for name in task.template_fields:
        if hasattr(task, name):
            monkeypatch.setattr(task, name, filled(getattr(task, name)))
    return task


def test_a_night_is_one_task_that_runs_the_cloud_run_job(nightly: Any, task: Any) -> None:
    dag = nightly.dag
    assert dag.dag_id == "tracin_nightly" and dag.catchup is False and dag.max_active_runs == 1
    assert (task.project_id, task.region) == ("some-project", "europe-west1")
    assert task.deferrable is False
    terraform = (TEMPLATES / "terraform" / "main.tf").read_text()
    assert f'name                = "{task.job_name}"\n  location' in terraform
    # What has a template is filled in by Airflow.
    assert {"overrides", "outcome", "execution", "project_id", "region"} <= set(
        task.template_fields
    )


def test_the_command_runs_with_its_arguments(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (override,) = task.overrides["container_overrides"]
    argument, *words = override["args"]
    assert json.loads(argument) == ARGUMENT
    with object_store.running() as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{store.host}")
        ended = World(store, audit=["crossed"]).night(*words)
    assert ended.status == 3 and ended.outcome["results"] == ROOT
    assert ended.outcome["execution"] == task.execution
    assert task.outcome == {"bucket": "some-bucket", "name": OUTCOME}


@pytest.fixture
def run(nightly: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the task, whose job fails and has left an outcome."""

    class Store:
        def __init__(self, gcp_conn_id: str) -> None:
            assert gcp_conn_id == "google_cloud_default"

        def download(self, bucket_name: str, object_name: str) -> bytes:
            assert (bucket_name, object_name) == ("some-bucket", OUTCOME)
            return json.dumps(left).encode()

    def fail(self: Any, context: Any) -> None:
        raise nightly.AirflowException("job failed")

    left: dict[str, str] = {}

    def run(**outcome: str) -> None:
        left.update({"execution": task.execution, "message": "some message", **outcome})
        task.execute({})

    monkeypatch.setattr(nightly, "GCSHook", Store)
    monkeypatch.setattr(nightly.CloudRunExecuteJobOperator, "execute", fail)
    return run


@pytest.mark.parametrize("status", ["drift", "failed"])
def test_it_ends_with_the_nights_message_and_is_not_tried_again(
    nightly: Any, run: Any, status: str
) -> None:
    with pytest.raises(nightly.AirflowFailException, match=r"^some message$"):
        run(status=status)


@pytest.mark.parametrize(
    "outcome", [{"status": "running"}, {"status": "drift", "execution": "another"}]
)
def test_an_outcome_that_is_not_this_ones_says_nothing(
    nightly: Any, run: Any, outcome: dict[str, str]
) -> None:
    with pytest.raises(nightly.AirflowException, match="job failed") as caught:
        run(**outcome)
    assert not isinstance(caught.value, nightly.AirflowFailException)


def test_a_job_that_succeeds_is_a_task_that_succeeds(
    nightly: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly.CloudRunExecuteJobOperator, "execute", lambda *_: "the job")
    assert task.execute({}) == "the job"
