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

from pipeline.flags.dataflow import mistake
from tests.fakes.dockerfile import TEMPLATES
from tests.templates.test_workflow import (
    ARGUMENT,
    ENVIRONMENT,
    LAST,
    ROOT,
    SUBMISSION,
    argument,
    assert_launchable,
)

PATH = TEMPLATES / "airflow" / "tracin_nightly.py"


class Operator:
    """As much of an operator as the DAG touches."""

    def __init__(self, **fields: Any) -> None:
        self.gcp_conn_id = "google_cloud_default"
        self.log = types.SimpleNamespace(info=lambda *_: None)
        self.after: list[Operator] = []
        self.trigger_rule = "all_success"
        self.__dict__.update(fields)
        Dag.entered.tasks.append(self)

    def execute(self, context: Any) -> Any:
        raise NotImplementedError

    def __rshift__(self, other: Operator) -> Operator:
        self.after.append(other)
        return other

    @property
    def downstream_task_ids(self) -> set[str]:
        return {one.__dict__["task_id"] for one in self.after}


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
            "AirflowSkipException": type("AirflowSkipException", (AirflowException,), {}),
        },
        "airflow.models": {"Variable": type("Variable", (), {"get": None})},
        "airflow.providers.google.cloud.hooks.gcs": {"GCSHook": None},
        "airflow.providers.google.cloud.operators.dataflow": {
            "DataflowStartFlexTemplateOperator": Operator
        },
    }
    modules = {}
    for name, content in names.items():
        modules[name] = types.ModuleType(name)
        modules[name].__dict__.update(content)
    # It is missing before Airflow 3, and `from` of a parent that is no package says so.
    return modules


@pytest.fixture(scope="module")
def nightly() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("airflow.providers.google.cloud.operators.dataflow")
        except ImportError:
            for name, module in stand_ins().items():
                patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("tracin_nightly", PATH)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "tracin_nightly", module)
        spec.loader.exec_module(module)
        yield module


class Store:
    """The bucket: names of objects."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def __call__(self, gcp_conn_id: str) -> Store:
        assert gcp_conn_id == "google_cloud_default"
        return self

    def exists(self, bucket_name: str, object_name: str) -> bool:
        assert bucket_name == "some-bucket"
        return object_name in self.names

    def list(self, bucket_name: str, match_glob: str) -> list[str]:
        assert (bucket_name, match_glob) == ("some-bucket", "nightly/*/*/manifest.json")
        return sorted(self.names)


def complete(*nights: str) -> Store:
    return Store(
        *(
            f"nightly/{night}/{step}/manifest.json"
            for night in nights
            for step in ("train_features", "test_features", "audit")
        )
    )


@pytest.fixture
def run(nightly: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a task against a store; returns what was launched, or None. `ends` is what becomes of
    the job.
    """

    def run(
        step: str, store: Store, attempt: int = 1, ends: Any = lambda: "job", **changes: Any
    ) -> Any:
        launched = []

        def execute(self: Any, context: Any) -> Any:
            launched.append((self.location, self.body))
            return ends()

        monkeypatch.setattr(nightly.DataflowStartFlexTemplateOperator, "execute", execute)
        monkeypatch.setattr(nightly, "GCSHook", store)
        monkeypatch.setattr(
            nightly.Variable,
            "get",
            staticmethod(lambda name, deserialize_json: argument(**changes)),
        )
        (task,) = (task for task in nightly.dag.tasks if task.task_id == step)
        task.execute({"ds": "2026-11-25", "ti": types.SimpleNamespace(try_number=attempt)})
        return launched[0] if launched else None

    return run


def test_a_night_is_one_line_of_tasks(nightly: Any) -> None:
    dag = nightly.dag
    assert dag.dag_id == "tracin_nightly" and dag.catchup is False and dag.max_active_runs == 1
    line = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    assert line == {
        "train_features": {"test_features"},
        "test_features": {"influence"},
        "influence": {"audit"},
        "audit": set(),
    }
    # Without a test set the two before it are skipped.
    assert {
        task.task_id: str(getattr(task.trigger_rule, "value", task.trigger_rule))
        for task in dag.tasks
    }["audit"] == "none_failed"
    assert all(
        (task.append_job_name, task.wait_until_finished, task.deferrable) == (False, True, False)
        for task in dag.tasks
    )


@pytest.mark.parametrize("nights", [(), ("2026-11-20", "2026-11-24", "2026-11-26")])
def test_what_is_launched_is_what_the_workflow_launches(
    nightly: Any, run: Any, nights: tuple[str, ...]
) -> None:
    from tests.templates.test_workflow import Google, night

    expected = {name: parameters for name, parameters in night(Google(*nights)).launched}
    for step, command in nightly.STEPS.items():
        location, body = run(step, complete(*nights))
        assert location == "europe-west1" and set(body) == {"launchParameter"}
        launch = body["launchParameter"]
        assert launch["parameters"] == expected.pop(launch["jobName"])
        assert launch["containerSpecGcsPath"] == f"gs://some-bucket/templates/{command}.json"
        assert (
            launch["environment"] == ARGUMENT["environment"]
            and set(launch["environment"]) <= ENVIRONMENT
        )
        assert_launchable(command, launch["parameters"])
        assert mistake([*SUBMISSION, f"--job_name={launch['jobName']}"]) is None
        json.dumps(body)
    assert expected == {}


def test_a_second_try_copies_nothing_and_has_its_own_name(run: Any) -> None:
    _, first = run("train_features", complete("2026-11-24"))
    _, second = run("train_features", complete("2026-11-24"), attempt=2)
    assert first["launchParameter"]["parameters"]["base"] == f"{LAST}train_features"
    assert "base" not in second["launchParameter"]["parameters"]
    assert second["launchParameter"]["jobName"] == "tracin-train-features-2026-11-25-2"


def test_what_is_complete_is_not_launched(run: Any) -> None:
    assert run("audit", complete("2026-11-25")) is None


def test_without_a_test_set_there_is_no_influence(nightly: Any, run: Any) -> None:
    for step in ("test_features", "influence"):
        with pytest.raises(nightly.AirflowSkipException, match="no test set"):
            run(step, complete(), test=None)
    _, body = run("audit", complete(), test=None)
    assert "test_features" not in body["launchParameter"]["parameters"]


def test_drift_is_told_apart_from_failure_and_not_tried_again(nightly: Any, run: Any) -> None:
    store = complete("2026-11-24")

    def crosses() -> None:
        store.names.add("nightly/2026-11-25/audit/manifest.json")
        raise nightly.AirflowException("job failed")

    with pytest.raises(nightly.AirflowFailException, match=f"^drift; .*{ROOT}audit/report.html"):
        run("audit", store, ends=crosses)

    def fails() -> None:
        raise nightly.AirflowException("job failed")

    with pytest.raises(nightly.AirflowException, match="job failed") as caught:
        run("influence", complete("2026-11-24"), ends=fails)
    assert not isinstance(caught.value, nightly.AirflowFailException)


def test_rows_that_are_not_in_their_table_are_written_by_another_try(
    nightly: Any, run: Any
) -> None:
    store, table = complete("2026-11-24"), {"output_table": "some-project:nightly.audit"}

    def fails_at_the_table() -> None:
        store.names.add("nightly/2026-11-25/audit/manifest.json")
        raise nightly.AirflowException("job failed")

    with pytest.raises(nightly.AirflowException, match="job failed") as caught:
        run("audit", store, ends=fails_at_the_table, audit=table)
    assert not isinstance(caught.value, nightly.AirflowFailException)
    assert run("audit", store, audit=table) is None
    _, body = run("audit", store, attempt=2, audit=table)
    assert body["launchParameter"]["parameters"]["output_table"] == table["output_table"]
