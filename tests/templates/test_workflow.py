"""The nightly workflow, carried out against a stand-in for Dataflow and Cloud Storage."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pipeline.flags import parser
from pipeline.flags.dataflow import mistake
from templates import metadata
from tests.fakes import workflows
from tests.fakes.dockerfile import TEMPLATES
from tests.fakes.workflows import Raised, Workflow, connection_error, http_error

TEXT = (TEMPLATES / "workflow.yaml").read_text()
NOW = "2026-11-25T02:00:00Z"
ROOT = "gs://some-bucket/nightly/2026-11-25/"
LAST = "gs://some-bucket/nightly/2026-11-24/"

ARGUMENT: dict[str, Any] = {
    "bucket": "some-bucket",
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
NIGHT = ("train_features", "test_features", "influence", "audit")

# Of FlexTemplateRuntimeEnvironment.
ENVIRONMENT = {
    *(
        "serviceAccountEmail",
        "tempLocation",
        "stagingLocation",
        "maxWorkers",
        "numWorkers",
        "machineType",
        "diskSizeGb",
        "network",
    ),
    *(
        "subnetwork",
        "ipConfiguration",
        "additionalExperiments",
        "additionalUserLabels",
        "sdkContainerImage",
        "launcherMachineType",
    ),
}


def argument(**changes: Any) -> dict[str, Any]:
    """The usual argument, changed; None leaves a part out."""
    return {key: value for key, value in {**ARGUMENT, **changes}.items() if value is not None}


class Google:
    """Dataflow and Cloud Storage: jobs end as they are told to, and leave what the programs leave.

    Attributes:
        objects: names of what is in the bucket.
        launched: the launch requests that made a job.
        ends: for each step of a night how its jobs end, one after another; what is not there is
            `"done"`.
        faults: what becomes of the next calls of a method: an error, or `"lost"`, where the call is
            carried out and its answer lost.
    """

    def __init__(self, *nights: str, **ends: list[str]) -> None:
        self.objects = {
            f"nightly/{night}/{step}/manifest.json" for night in nights for step in NIGHT
        }
        self.ends = ends
        self.faults: dict[str, list[Raised | str]] = {}
        self.launched: list[dict[str, Any]] = []
        self._jobs: list[dict[str, Any]] = []

    def calls(self) -> dict[str, Callable[..., Any]]:
        dataflow = "googleapis.dataflow.v1b3.projects.locations"
        methods = {
            f"{dataflow}.flexTemplates.launch": self.launch,
            f"{dataflow}.jobs.get": self.get,
            f"{dataflow}.jobs.list": self.list_jobs,
            "googleapis.storage.v1.objects.list": self.list_objects,
        }
        return {
            name: self._faulty(
                name.rsplit(".", 1)[0].rsplit(".", 1)[1] + "." + name.rsplit(".", 1)[1], m
            )
            for name, m in methods.items()
        }

    def _faulty(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            faults = self.faults.get(name) or []
            fault = faults.pop(0) if faults else None
            if isinstance(fault, Raised):
                raise fault
            answer = method(**arguments)
            if fault == "lost":
                raise connection_error()
            return answer

        return call

    def launch(self, projectId: str, location: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (projectId, location, set(body)) == (
            "some-project",
            "europe-west1",
            {"launchParameter"},
        )
        request = body["launchParameter"]
        assert set(request) == {"jobName", "containerSpecGcsPath", "parameters", "environment"}
        assert set(request["environment"]) <= ENVIRONMENT
        name = request["jobName"]
        assert mistake([*SUBMISSION, f"--job_name={name}"]) is None
        if any(job["name"] == name and job["left"] for job in self._jobs):
            raise http_error(409)
        found = re.fullmatch(
            r"gs://some-bucket/templates/(\w+)\.json", request["containerSpecGcsPath"]
        )
        assert found
        parameters = request["parameters"]
        assert_launchable(found[1], parameters)
        step = parameters["output"].removeprefix(ROOT)
        end = (self.ends.get(step) or ["done"]).pop(0) if self.ends.get(step) else "done"
        self.launched.append(request)
        self._jobs.append(
            {
                "id": f"job-{len(self._jobs)}",
                "name": name,
                "left": 3,
                "end": end,
                "output": parameters["output"],
            }
        )
        return {"job": {"id": self._jobs[-1]["id"], "name": name}}

    def get(self, projectId: str, location: str, jobId: str) -> dict[str, Any]:
        (job,) = (job for job in self._jobs if job["id"] == jobId)
        if job["left"] > 1 or (job["left"] and job["end"] != "hangs"):
            job["left"] -= 1
        if job["left"]:
            return {
                "id": jobId,
                "currentState": "JOB_STATE_QUEUED" if job["left"] == 2 else "JOB_STATE_RUNNING",
            }
        if job["end"] in ("done", "crossed"):
            self.objects.add(job["output"].removeprefix("gs://some-bucket/") + "/manifest.json")
        states = {"done": "DONE", "crossed": "FAILED", "failed": "FAILED", "cancelled": "CANCELLED"}
        return {"id": jobId, "currentState": f"JOB_STATE_{states[job['end']]}"}

    def list_jobs(self, projectId: str, location: str, filter: str) -> dict[str, Any]:
        assert filter == "ACTIVE"
        active = [{"id": job["id"], "name": job["name"]} for job in self._jobs if job["left"]]
        return {"jobs": active} if active else {}

    def list_objects(
        self,
        bucket: str,
        prefix: str,
        delimiter: str = "",
        startOffset: str = "",
        endOffset: str = "\uffff",
        maxResults: int = 1000,
    ) -> dict[str, Any]:
        assert bucket == "some-bucket"
        names = sorted(
            name
            for name in self.objects
            if name.startswith(prefix) and startOffset <= name < endOffset
        )
        folders = sorted(
            {prefix + name[len(prefix) :].split(delimiter)[0] + delimiter for name in names}
            if delimiter
            else ()
        )
        items = [
            {"name": name}
            for name in names
            if not delimiter or delimiter not in name[len(prefix) :]
        ][:maxResults]
        # A list of nothing is left out of an answer.
        return {key: value for key, value in (("items", items), ("prefixes", folders)) if value}


SUBMISSION = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/tmp",
)


def assert_launchable(command: str, parameters: dict[str, Any]) -> None:
    """The template has these parameters and the program starts with them."""
    told = {one["name"]: one for one in metadata.metadata(command)["parameters"]}
    for name, value in parameters.items():
        assert isinstance(value, str), (name, value)
        assert re.fullmatch(told[name]["regexes"][0], value), (name, value)
    parser.parse(command, [f"--{name}={value}" for name, value in parameters.items()])


@dataclasses.dataclass
class Night:
    """An execution: what came out, what was launched.

    Attributes:
        result: what it returned, or None.
        error: what it raised, or None.
        launched: (job name, parameters) of each launch.
        minutes: how long it took.
    """

    google: Google
    result: Any
    error: Any
    launched: list[tuple[str, dict[str, str]]]
    minutes: float
    visited: set[tuple[str, str]]


def night(google: Google, copies: bool = True, now: str = NOW, **changes: Any) -> Night:
    before = len(google.launched)
    workflow = Workflow(TEXT, google.calls(), now, copies)
    start, result, error = workflow.now, None, None
    try:
        result = workflow.run(argument(**changes))
    except Raised as raised:
        error = raised.value
    launched = [(one["jobName"], one["parameters"]) for one in google.launched[before:]]
    return Night(google, result, error, launched, (workflow.now - start) / 60, workflow.visited)


def test_the_definition_is_sound() -> None:
    definition = yaml.safe_load(TEXT)
    assert set(definition["main"]) == {"params", "steps"}
    for workflow in definition.values():
        names = [name for name, _ in workflows.steps(workflow)]
        assert len(names) == len(set(names))
        for name, step in workflows.steps(workflow):
            assert set(step) <= workflows.STEP_FIELDS and re.fullmatch(r"[a-z_]+", name)
            for target in (one.get("next") for one in (step, *step.get("switch", ()))):
                assert target in (None, "break") or target in names
    for expression in workflows.expressions(definition):
        if not expression.startswith("${http."):
            workflows.parse(expression)


both = pytest.mark.parametrize("copies", [True, False], ids=["maps copied", "maps shared"])


@both
def test_a_first_night_has_nothing_to_compare_with(copies: bool) -> None:
    done = night(Google(), copies)
    assert done.error is None
    model = {"checkpoints": "gs://data/checkpoints/*.keras", "id_key": "id"}
    assert done.launched == [
        (
            "tracin-train-features-2026-11-25-1",
            {**model, "examples": "gs://data/train-*", "output": f"{ROOT}train_features"},
        ),
        (
            "tracin-test-features-2026-11-25-1",
            {**model, "examples": "gs://data/test-*", "output": f"{ROOT}test_features"},
        ),
        (
            "tracin-influence-2026-11-25-1",
            {
                "train_features": f"{ROOT}train_features",
                "test_features": f"{ROOT}test_features",
                "k": "20",
                "output": f"{ROOT}influence",
            },
        ),
        # No threshold that compares, and so nothing to fail at: the program would refuse both.
        (
            "tracin-audit-2026-11-25-1",
            {
                "features": f"{ROOT}train_features",
                "test_features": f"{ROOT}test_features",
                "min_suspicion": "0.6",
                "output": f"{ROOT}audit",
            },
        ),
    ]
    assert done.result == {
        "date": "2026-11-25",
        "results": ROOT,
        "previous": "",
        **dict.fromkeys(NIGHT, "done"),
    }
    assert all(one["environment"] == ARGUMENT["environment"] for one in done.google.launched)


@both
def test_a_further_night_copies_and_compares(copies: bool) -> None:
    done = night(Google("2026-11-20", "2026-11-24"), copies)
    assert done.error is None
    sent = dict(done.launched)
    assert sent["tracin-train-features-2026-11-25-1"]["base"] == f"{LAST}train_features"
    assert sent["tracin-test-features-2026-11-25-1"]["base"] == f"{LAST}test_features"
    assert "base" not in sent["tracin-influence-2026-11-25-1"]
    audit = sent["tracin-audit-2026-11-25-1"]
    assert audit["previous"] == f"{LAST}audit"
    assert {name: audit[name] for name in ARGUMENT["drift"]} == ARGUMENT["drift"]
    assert done.result["previous"] == "nightly/2026-11-24/"


@both
def test_without_a_test_set_there_is_no_influence(copies: bool) -> None:
    done = night(Google("2026-11-24"), copies, test=None, score=None, audit=None, drift=None)
    assert done.error is None
    assert [name for name, _ in done.launched] == [
        "tracin-train-features-2026-11-25-1",
        "tracin-audit-2026-11-25-1",
    ]
    assert dict(done.launched)["tracin-audit-2026-11-25-1"] == {
        "features": f"{ROOT}train_features",
        "previous": f"{LAST}audit",
        "output": f"{ROOT}audit",
    }


@both
def test_a_base_that_no_longer_fits_is_dropped(copies: bool) -> None:
    # As where there are new checkpoints: the program refuses the base, and the job fails before it
    # starts.
    done = night(Google("2026-11-24", train_features=["failed"]), copies)
    assert done.error is None
    (first, second) = done.launched[:2]
    assert (first[0], second[0]) == (
        "tracin-train-features-2026-11-25-1",
        "tracin-train-features-2026-11-25-2",
    )
    assert {name: value for name, value in first[1].items() if name != "base"} == second[1]


def test_where_nights_have_other_checkpoints_nothing_is_copied() -> None:
    done = night(Google("2026-11-24"), reuse=False)
    assert done.error is None
    assert not any("base" in parameters for _, parameters in done.launched)
    assert dict(done.launched)["tracin-audit-2026-11-25-1"]["previous"] == f"{LAST}audit"


def test_a_test_set_that_is_new_has_no_base() -> None:
    google = Google("2026-11-24")
    google.objects -= {
        "nightly/2026-11-24/test_features/manifest.json",
        "nightly/2026-11-24/influence/manifest.json",
    }
    done = night(google)
    assert done.error is None
    sent = dict(done.launched)
    assert (
        "base" in sent["tracin-train-features-2026-11-25-1"]
        and "base" not in sent["tracin-test-features-2026-11-25-1"]
    )


def test_a_step_that_fails_again_ends_the_night() -> None:
    done = night(Google(influence=["failed", "failed"]))
    assert done.error["tags"] == ["Failed"]
    assert done.error["message"] == (
        "influence of 2026-11-25 ended as JOB_STATE_FAILED, see job tracin-influence-2026-11-25-2 "
        "(job-3)"
    )
    assert [name.split("-")[1] for name, _ in done.launched] == [
        "train",
        "test",
        "influence",
        "influence",
    ]
    # The next try takes up where this one ended.
    again = night(done.google)
    assert again.error is None
    assert [name for name, _ in again.launched] == [
        "tracin-influence-2026-11-25-1",
        "tracin-audit-2026-11-25-1",
    ]
    assert (
        again.result["train_features"] == "already complete" and again.result["influence"] == "done"
    )


def test_the_number_of_tries_is_a_setting() -> None:
    done = night(Google(audit=["failed"] * 3), attempts=4)
    assert done.error is None and done.launched[-1][0] == "tracin-audit-2026-11-25-4"
    assert night(Google(audit=["failed"]), attempts=1).error["tags"] == ["Failed"]


def test_what_a_person_cancelled_is_not_tried_again() -> None:
    done = night(Google(train_features=["cancelled"]))
    assert "ended as JOB_STATE_CANCELLED" in done.error["message"]
    assert len(done.launched) == 1


@both
def test_drift_is_told_apart_from_failure(copies: bool) -> None:
    done = night(Google("2026-11-24", audit=["crossed"]), copies)
    assert done.error["tags"] == ["Drift"]
    assert (
        done.error["message"] == "drift; the audit of 2026-11-25 is complete "
        f"and crosses a threshold, see {ROOT}audit/report.html"
    )
    assert (
        done.error["outcome"]["influence"] == "done" and done.error["outcome"]["audit"] == "crossed"
    )
    # It is told once: the job was not started again, and the same date is complete.
    assert [name for name, _ in done.launched if "audit" in name] == ["tracin-audit-2026-11-25-1"]
    assert night(done.google).result["audit"] == "already complete"
    json.dumps(done.error)


def test_rows_that_are_not_in_their_table_are_written_by_another_try() -> None:
    table = {"output_table": "some-project:nightly.audit"}
    done = night(Google(audit=["crossed", "done"]), audit=table)
    assert done.error is None and done.result["audit"] == "done"
    assert [name for name, _ in done.launched][-2:] == [
        "tracin-audit-2026-11-25-1",
        "tracin-audit-2026-11-25-2",
    ]
    assert all(
        parameters["output_table"] == table["output_table"] for _, parameters in done.launched[-2:]
    )
    # Where that does not help, nobody can tell from outside which of the two it is.
    failed = night(Google(audit=["crossed", "crossed"]), audit=table)
    assert failed.error["tags"] == ["Failed"]
    assert failed.error["message"] == (
        "audit of 2026-11-25 is complete, but crosses a threshold or has no rows in its table, see "
        "job tracin-audit-2026-11-25-2 (job-4)"
    )


def test_unsteady_services_are_asked_again() -> None:
    google = Google("2026-11-24")
    google.faults = {
        "flexTemplates.launch": [http_error(503), connection_error(), http_error(429)],
        "objects.list": [http_error(503), connection_error()],
        "jobs.get": [http_error(502)] * 5,
    }
    done = night(google)
    assert done.error is None and len(done.launched) == 4


def test_a_job_whose_launch_got_lost_is_found_again() -> None:
    google = Google()
    google.faults = {"flexTemplates.launch": ["lost"], "jobs.list": [http_error(503)]}
    done = night(google)
    assert done.error is None
    assert [name for name, _ in done.launched if "train" in name] == [
        "tracin-train-features-2026-11-25-1"
    ]


def test_what_is_refused_is_told() -> None:
    google = Google()
    google.faults = {"flexTemplates.launch": [http_error(400)]}
    assert night(google).error["code"] == 400
    google.faults = {"flexTemplates.launch": [http_error(409)]}
    assert "is not among the running jobs" in night(google).error["message"]
    google.faults = {"objects.list": [http_error(403)]}
    assert night(google).error["code"] == 403
    google.faults = {"jobs.get": [http_error(503)] * 9}
    assert night(google).error["code"] == 503


def test_a_job_that_does_not_end_ends_the_night() -> None:
    done = night(Google(train_features=["hangs"]), hours=3)
    assert "takes longer than it may, and is still running" in done.error["message"]
    assert done.minutes == 180


def test_the_last_complete_night_before_is_compared_with() -> None:
    google = Google("2026-11-22", "2026-11-23", "2026-11-26")
    google.objects -= {"nightly/2026-11-23/audit/manifest.json"}
    assert night(google).result["previous"] == "nightly/2026-11-22/"
    # Nobody audits monthly and wants tonight's copied from what is of another season.
    assert night(Google("2026-09-25")).result["previous"] == ""
    assert night(Google("2026-09-26")).result["previous"] == "nightly/2026-09-26/"
    incomplete = Google()
    incomplete.objects = {"nightly/2026-11-24/train_features/manifest.json"}
    assert night(incomplete).result["previous"] == ""


def test_another_date_can_be_run() -> None:
    done = night(Google(), now="2026-11-27T02:00:00Z", date="2026-11-25")
    assert done.error is None and done.result["results"] == ROOT
    for wrong in ("yesterday", "2026-11-25T00:00", "26-11-25"):
        assert "expected a date such as 2026-11-25" in night(Google(), date=wrong).error["message"]


def test_every_step_is_carried_out_in_one_of_these_tests() -> None:
    lost, unlisted = Google(), Google()
    lost.faults = {"flexTemplates.launch": ["lost"]}
    unlisted.faults = {"flexTemplates.launch": [http_error(409)]}
    refused = Google()
    refused.faults = {"flexTemplates.launch": [http_error(400)]}
    nights = [
        night(Google("2026-11-24", train_features=["failed"])),
        night(Google("2026-11-24"), test=None),
        night(Google(train_features=["failed", "failed"])),
        night(Google(train_features=["hangs"])),
        *map(night, (lost, unlisted, refused)),
    ]
    visited = set().union(*(one.visited for one in nights))
    definition = yaml.safe_load(TEXT)
    assert visited == {
        (name, step)
        for name, workflow in definition.items()
        for step, _ in workflows.steps(workflow)
    }
