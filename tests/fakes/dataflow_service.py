"""Dataflow's REST interface, answered in this process, beside a store that its jobs write to."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from requests.adapters import BaseAdapter

from pipeline.flags import parser
from pipeline.flags.dataflow import mistake
from templates import metadata
from tests.fakes.object_store import BUCKET, Fault, Store

HOST = "https://dataflow.googleapis.com"
LOCATION = "/v1b3/projects/some-project/locations/europe-west1"

# Of FlexTemplateRuntimeEnvironment.
ENVIRONMENT = {
    *("serviceAccountEmail", "tempLocation", "stagingLocation", "maxWorkers", "numWorkers"),
    *("machineType", "diskSizeGb", "network", "subnetwork", "ipConfiguration"),
    *("additionalExperiments", "additionalUserLabels", "sdkContainerImage"),
    "launcherMachineType",
}

SUBMISSION = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/tmp",
)


def assert_launchable(command: str, parameters: dict[str, Any]) -> None:
    """The template has these parameters and the program starts with them."""
    described = {parameter["name"]: parameter for parameter in metadata.parameters(command)}
    for name, value in parameters.items():
        assert isinstance(value, str), (name, value)
        assert re.fullmatch(described[name]["regexes"][0], value), (name, value)
    parser.parse(command, [f"--{name}={value}" for name, value in parameters.items()])


class Stopped(BaseException):
    """The process that asked was killed."""


@dataclasses.dataclass
class Job:
    """A job: how it ends, and how many looks from now."""

    id: str
    name: str
    end: str
    output: str
    left: int = 3


class DataflowService(BaseAdapter):
    """Jobs end as they are told to, and leave what the programs leave.

    Attributes:
        store: where results are.
        ends: for each step of a night how its jobs end, one after another: `"done"`, `"failed"`,
            `"cancelled"`, `"hangs"`, or `"crossed"`, where the result is complete and the job
            failed. What is not there is `"done"`.
        faults: requests that are still to be answered wrongly: a status, `"broken"` before it is
            carried out, or `"lost"` after it; `"killed before"` and `"killed after"`, where the
            process that asks is killed then.
        launched: the `launchParameter` of each job that was made.
        requests: what has been asked for, as `METHOD path`.
        jobs: that were made.
        page: how many jobs a list has at most.
    """

    def __init__(self, store: Store, **ends: list[str]) -> None:
        super().__init__()
        self.store = store
        self.ends = ends
        self.faults: list[Fault] = []
        self.launched: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.jobs: list[Job] = []
        self.page = 2

    def session(self) -> requests.Session:
        """A session whose requests this answers."""
        session = requests.Session()
        session.mount(HOST, self)
        return session

    def close(self) -> None:
        pass

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        assert request.url and request.method
        url = urlsplit(request.url)
        asked = f"{request.method} {url.path.removeprefix(LOCATION)}"
        self.requests.append(asked)
        fault = self._fault(asked)
        if fault == "broken":
            raise requests.exceptions.ConnectionError("connection reset by peer")
        if isinstance(fault, int):
            return _response(request, fault, {"error": {"code": fault, "message": "not now"}})
        if fault == "killed before":
            raise Stopped
        answer = self._answer(asked, parse_qs(url.query), request.body)
        if fault == "killed after":
            raise Stopped
        if fault == "lost":
            raise requests.exceptions.ReadTimeout("no answer")
        return _response(request, *answer)

    def _fault(self, asked: str) -> int | str | None:
        for fault in self.faults:
            if fault.times and re.search(fault.on, asked):
                if fault.after:
                    fault.after -= 1
                    return None
                fault.times -= 1
                return fault.what
        return None

    def _answer(self, asked: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if asked == "POST /flexTemplates:launch":
            return self._launch(json.loads(body))
        if asked == "GET /jobs":
            assert query["filter"] == ["ACTIVE"]
            return 200, self._list(int(query.get("pageToken", ["0"])[0]))
        assert asked.startswith("GET /jobs/"), asked
        return self._look(asked.removeprefix("GET /jobs/"))

    def _launch(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert set(body) == {"launchParameter"}
        launch = body["launchParameter"]
        assert set(launch) == {"jobName", "containerSpecGcsPath", "parameters", "environment"}
        assert set(launch["environment"]) <= ENVIRONMENT
        name, output = launch["jobName"], launch["parameters"]["output"]
        assert mistake([*SUBMISSION, f"--job_name={name}"]) is None
        if any(job.name == name and job.left for job in self.jobs):
            return 409, {"error": {"code": 409, "message": "there is an active job of this name"}}
        template = re.fullmatch(
            rf"gs://{BUCKET}/templates/(\w+)\.json", launch["containerSpecGcsPath"]
        )
        assert template
        assert_launchable(template[1], launch["parameters"])
        ends = self.ends.get(output.rsplit("/", 1)[1])
        job = Job(f"job-{len(self.jobs)}", name, ends.pop(0) if ends else "done", output)
        self.launched.append(launch)
        self.jobs.append(job)
        return 200, {"job": {"id": job.id, "name": name}}

    def _list(self, start: int) -> dict[str, Any]:
        active = [{"id": job.id, "name": job.name} for job in self.jobs if job.left]
        answer: dict[str, Any] = {"jobs": active[start : start + self.page]}
        if start + self.page < len(active):
            answer["nextPageToken"] = str(start + self.page)
        # A list of nothing is left out of an answer.
        return answer if active else {}

    def _look(self, identifier: str) -> tuple[int, Any]:
        (job,) = (job for job in self.jobs if job.id == identifier)
        if job.left > 1 or (job.left and job.end != "hangs"):
            job.left -= 1
        if job.left == 2:
            # It has no state yet.
            return 200, {"id": job.id}
        if job.left:
            return 200, {"id": job.id, "currentState": "JOB_STATE_RUNNING"}
        if job.end in ("done", "crossed"):
            self.store.put(f"{job.output.removeprefix(f'gs://{BUCKET}/')}/manifest.json", b"{}")
        states = {"done": "DONE", "crossed": "FAILED", "failed": "FAILED", "cancelled": "CANCELLED"}
        return 200, {"id": job.id, "currentState": f"JOB_STATE_{states[job.end]}"}


def _response(request: requests.PreparedRequest, status: int, document: Any) -> requests.Response:
    response = requests.Response()
    response.request, response.url = request, request.url or ""
    response.status_code = status
    response.headers["Content-Type"] = "application/json"
    response.raw = io.BytesIO(json.dumps(document).encode())
    return response
