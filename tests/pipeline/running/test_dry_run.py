"""What is told of a Dataflow job before it is submitted, and what is then submitted, to a small
stand-in for Google's services.
"""

from __future__ import annotations

import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Outcome, Tiny, write_records

Run = Callable[..., Outcome]
ROOT = pathlib.Path(__file__).parents[3]
JOB = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/tmp",
)
COUNTS = (
    "--train_count=60000",
    "--test_count=10000",
    "--checkpoint_count=6",
    "--outputs=10",
    "--units=129",
)
HINT = "type:nvidia-l4;count:1"

# A job that is not submitted


def test_a_plan_tells_the_job_and_what_it_needs(tracin: Run) -> None:
    more = (
        "--sdk_container_image=example.com/tracin:1",
        "--machine_type=n2-highmem-8",
        "--label=team=vision",
        "--job_name=nightly",
    )
    outcome = tracin(
        "plan",
        *COUNTS,
        *JOB,
        *more,
        "--max_num_workers=7",
        "--experiments=no_use_multiple_sdk_containers",
    )
    assert outcome.status == 0, outcome.err
    cost, job = outcome.out.split("\n\n")
    assert "600,000,000" in cost
    rows = dict(line.split("  ", 1) for line in job.strip().splitlines())
    rows = {name: text.strip() for name, text in rows.items()}
    assert rows["job"] == "nightly in some-project, europe-west1"
    assert rows["container image"] == "example.com/tracin:1"
    assert rows["staged"].startswith("nothing")
    assert rows["machines"] == "n2-highmem-8, default GB of disk, at most 7"
    assert rows["worker processes"] == "one on a machine"
    assert rows["temporary files"].startswith("gs://some-bucket/tmp")
    assert rows["labels"] == "team=vision"
    assert {"ScoreInfluence", "WriteInfluence", "ReadTestFeatures"} <= set(rows)
    assert "roles/dataflow.worker" in rows["needs"]
    assert not any(name.startswith("hint") for name in rows)


# Submission


class Service(http.server.BaseHTTPRequestHandler):
    """Dataflow's API, as much of it as a submitting program calls: a job is accepted, and has
    failed when it is looked at.
    """

    posted: list[dict[str, Any]]

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.posted.append({"path": self.path, "job": job})
        self.answer({"id": "job-1", "name": job["name"], "clientRequestId": job["clientRequestId"]})

    def do_GET(self) -> None:
        if "/messages" in self.path or "/metrics" in self.path:
            self.answer({})
        else:
            self.answer({"id": "job-1", "currentState": "JOB_STATE_FAILED"})

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The stand-in's address, and what has been posted to it."""
    posted: list[dict[str, Any]] = []
    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), type("Posted", (Service,), {"posted": posted})
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_address[1]}", posted
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What Beam uploads, by name: its client's last call before Cloud Storage is replaced."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions
    from apache_beam.runners.dataflow.internal import apiclient

    kept: dict[str, bytes] = {}

    def keep(self: Any, directory: str, name: str, stream: Any, *_: Any, **__: Any) -> None:
        assert directory.startswith("gs://some-bucket/tmp/"), directory
        kept[name] = stream.read()

    monkeypatch.setattr(apiclient.DataflowApplicationClient, "stage_file", keep)
    monkeypatch.setattr(GoogleCloudOptions, "_warn_if_soft_delete_policy_enabled", lambda *_: None)
    return kept


def influence(tiny: Tiny, directory: pathlib.Path, payloads: list[bytes], *flags: str) -> list[str]:
    for name in ("train", "test"):
        write_records(directory / f"{name}-0", payloads)
    words = [f"--{name}_examples={directory}/{name}-*" for name in ("train", "test")]
    return [
        *words,
        f"--checkpoints={tiny.glob}",
        "--id_key=id",
        f"--output={directory}/out",
        f"--accelerator={HINT}",
        *JOB,
        *flags,
    ]


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of what the package is built from, since building leaves files beside it."""
    copy = tmp_path / "source"
    for name in ("pipeline", "transforms"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_a_whole_job_is_submitted(
    tiny: Tiny,
    tmp_path: pathlib.Path,
    tracin: Run,
    service: Any,
    staged: dict[str, bytes],
    source: pathlib.Path,
) -> None:
    from apache_beam.portability.api import beam_runner_api_pb2

    address, posted = service
    flags = (
        f"--dataflow_endpoint={address}",
        "--no_auth",
        f"--setup_file={source}/setup.py",
        "--sdk_container_image=example.com/tracin-gpu:1",
        "--machine_type=g2-standard-4",
        "--disk_size_gb=50",
        "--num_workers=2",
        "--max_num_workers=9",
        "--label=team=vision",
        "--job_name=influence-1",
        "--service_account_email=worker@some-project.iam.gserviceaccount.com",
        "--experiments=no_use_multiple_sdk_containers",
    )
    outcome = tracin("influence", *influence(tiny, tmp_path, tiny.payloads(), *flags))
    # It was submitted, and failed there, as the stand-in says.
    assert outcome.status == 1, outcome.err
    told = [line for line in outcome.err.splitlines() if line.startswith("tracin")]
    assert told == [
        "tracin influence: failed: Dataflow pipeline failed. State: FAILED, Error: None: see the "
        "job's logs"
    ]
    (request,) = posted
    assert (
        request["path"].split("?")[0] == "/v1b3/projects/some-project/locations/europe-west1/jobs"
    )
    job = request["job"]
    assert (job["name"], job["labels"]) == ("influence-1", {"team": "vision"})
    environment = job["environment"]
    assert environment["serviceAccountEmail"] == "worker@some-project.iam.gserviceaccount.com"
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == "g2-standard-4"
    assert (
        int(pool["diskSizeGb"]),
        int(pool["numWorkers"]),
        int(pool["autoscalingSettings"]["maxNumWorkers"]),
    ) == (50, 2, 9)
    assert {image["containerImage"] for image in pool["sdkHarnessContainerImages"]} == {
        "example.com/tracin-gpu:1"
    }
    # The package, and a list of what is installed here; no pickled main session.
    packages = {"workflow.tar.gz", "submission_environment_dependencies.txt"}
    assert {package["name"] for package in pool["packages"]} == packages
    assert set(staged) == packages | {"pipeline.pb"}
    graph = beam_runner_api_pb2.Pipeline.FromString(staged["pipeline.pb"])
    hinted = {
        transform.unique_name
        for transform in graph.components.transforms.values()
        if not transform.subtransforms and transform.environment_id
        if graph.components.environments[transform.environment_id].resource_hints.get(
            "beam:resources:accelerator:v1"
        )
        == HINT.encode()
    }
    for name in ("Train", "Test"):
        assert f"Extract{name}Features/ComputeFeatureSet/ExtractFeatures/RunCheckpoints" in hinted
    assert all(
        name.startswith(("ExtractTrainFeatures/", "ExtractTestFeatures/")) for name in hinted
    )

    assert_installs(staged["workflow.tar.gz"], tmp_path)


def assert_installs(package: bytes, directory: pathlib.Path) -> None:
    """The package installs where nothing else is, and is the programs."""
    archive = directory / "tracin.tar.gz"
    archive.write_bytes(package)
    site = directory / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run(
        [*pip, str(archive)], cwd=directory, check=True, timeout=120, capture_output=True
    )
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import transforms, pipeline.cli; "
        "print(pipeline.__file__, transforms.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=directory,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert all(path.startswith(str(site)) for path in done.stdout.split())
    for name in ("pipeline", "transforms"):
        assert {path.name for path in (site / name).glob("*.py")} == {
            path.name for path in (ROOT / name).glob("*.py")
        }


def test_a_dry_run_tells_which_steps_get_an_accelerator_and_submits_nothing(
    tiny: Tiny, tmp_path: pathlib.Path, tracin: Run, service: Any, staged: dict[str, bytes]
) -> None:
    address, posted = service
    outcome = tracin(
        "influence",
        *influence(
            tiny,
            tmp_path,
            tiny.payloads(),
            f"--dataflow_endpoint={address}",
            "--no_auth",
            "--dry_run=True",
        ),
    )
    assert outcome.status == 0, outcome.err
    assert posted == [] and staged == {}
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(f"hint {HINT}"))
    assert (
        "ExtractTrainFeatures/ComputeFeatureSet/ExtractFeatures/RunCheckpoints" in line
        and "Score" not in line
    )
    assert "beam_python3." in outcome.out
    assert outcome.out.splitlines()[-1] == "the graph is built; nothing has run"
    assert [path.name for path in tmp_path.rglob("out/**/*") if path.is_file()] == []
