"""Each program, started as a Flex Template's launcher starts it: a graph is written, and that graph
alone does everything.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from templates import metadata
from tests.conftest import Tiny, write_records
from tests.fakes import object_store
from tests.fakes.dockerfile import ROOT, read
from tests.fakes.object_store import BUCKET, Store
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest, Manifest

HERE = f"gs://{BUCKET}"
IMAGE = "europe-west1-docker.pkg.dev/some-project/tracin/tracin:1"

# What templates/README.md and the schedules pass, and what Dataflow's service adds.
SERVICE = (
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--job_name=nightly-2026-11-25",
    f"--temp_location={HERE}/tmp",
    f"--staging_location={HERE}/staging",
    f"--template_location={HERE}/staging/template_launches/1/job_object",
    f"--sdk_container_image={IMAGE}",
    "--experiments=no_use_multiple_sdk_containers",
    "--service_account_email=worker@some-project.iam.gserviceaccount.com",
    # Of fields of a job's environment that Beam does not know of.
    f"--save_heap_dumps_to_gcs_path={HERE}/dumps",
    # As launchers' logs show it.
    '--labels={\n   "goog-dataflow-provided-template-type" : "flex",\n   "team" : "vision"\n}\n',
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a launched program has left.

    Attributes:
        done: how it ended, and what it printed.
        job: the job that was written.
        graph: its graph.
        written: what is in its output directory, by name.
    """

    done: subprocess.CompletedProcess[str]
    job: dict[str, Any]
    graph: beam_runner_api_pb2.Pipeline
    written: dict[str, bytes]


@pytest.fixture(scope="module")
def store(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with examples, checkpoints, and feature sets of both."""
    from apache_beam.internal.gcp import auth

    from pipeline.commands import features

    directory = tmp_path_factory.mktemp("store")
    with object_store.running() as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{store.host}")
        patch.setattr(auth, "get_service_credentials", lambda options: None)
        for path in tiny.paths:
            store.put(f"checkpoints/{path.name}", path.read_bytes())
        for name, payloads in (("train", tiny.payloads()), ("test", tiny.payloads()[:10])):
            store.put(f"examples/{name}-0", write_records(directory / name, payloads).read_bytes())
            flags = {"examples": f"{HERE}/examples/{name}-*", "output": f"{HERE}/{name}_features"}
            assert (
                features.run([f"--{key}={value}" for key, value in {**EXTRACTION, **flags}.items()])
                == 0
            )
        yield store


EXTRACTION = {"checkpoints": f"{HERE}/checkpoints/*.keras", "id_key": "id"}
PARAMETERS: dict[str, dict[str, str]] = {
    "influence": {
        **EXTRACTION,
        "train_examples": f"{HERE}/examples/train-*",
        "test_examples": f"{HERE}/examples/test-*",
        "k": "3",
        "accelerator": "type:nvidia-l4;count:1;install-nvidia-driver",
    },
    "features": {**EXTRACTION, "examples": f"{HERE}/examples/train-*", "labels": "given"},
    "score": {
        "train_features": f"{HERE}/train_features",
        "test_features": f"{HERE}/test_features",
        "normalize": "cosine",
        "k": "3",
    },
    "audit": {
        "features": f"{HERE}/train_features",
        "test_features": f"{HERE}/test_features",
        "min_suspicion": "0.4",
    },
}
# Of each, the step that makes its result and the one that commits it.
STEPS = {
    "influence": {
        "ExtractTrainFeatures",
        "ExtractTestFeatures",
        "ScoreInfluence",
        "WriteInfluence",
    },
    "features": {"ExtractFeatures"},
    "score": {"ScoreInfluence", "WriteInfluence"},
    "audit": {"AuditLabels", "WriteAudit"},
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The directory of the image where the launcher finds the programs, as the Dockerfile fills
    it.
    """
    directory = tmp_path_factory.mktemp("image")
    for copy in read("Dockerfile").copies():
        if copy.target == "/template/":
            for source in copy.sources:
                shutil.copy(ROOT / source, directory)
    return directory


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What Python imports first: it keeps Beam from looking for Google's credentials, which takes
    half a minute.
    """
    directory = tmp_path_factory.mktemp("site")
    lines = (
        "from apache_beam.internal.gcp import auth",
        "auth._Credentials._credentials_init = True",
    )
    (directory / "sitecustomize.py").write_text("\n".join(lines))
    return directory


@pytest.fixture(scope="module", params=metadata.COMMANDS)
def command(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def launch(command: str, store: Store, template: pathlib.Path, site: pathlib.Path) -> Launch:
    parameters = {**PARAMETERS[command], "output": f"{HERE}/out/{command}"}
    told = {one["name"]: one for one in metadata.metadata(command)["parameters"]}
    for name, value in parameters.items():
        assert re.fullmatch(told[name]["regexes"][0], value), name
    assert set(parameters) >= {name for name, one in told.items() if not one["isOptional"]}
    program = dict(read("Dockerfile", COMMAND=command).environment())[
        "FLEX_TEMPLATE_PYTHON_PY_FILE"
    ]
    assert program.startswith("/template/")
    store.requests.clear()
    done = subprocess.run(
        [
            sys.executable,
            program.replace("/template", str(template)),
            *(f"--{k}={v}" for k, v in parameters.items()),
            *SERVICE,
        ],
        cwd=template,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    job = json.loads(store.objects("staging/template_launches/1/")["job_object"])
    url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    staged = store.objects(url.removeprefix(f"{HERE}/"))[""]
    return Launch(
        done, job, beam_runner_api_pb2.Pipeline.FromString(staged), written(store, command)
    )


def permission(request: str) -> tuple[str, str]:
    """What whoever makes a request of Cloud Storage must be allowed, and the object, if it is
    one.
    """
    method, url = request.split(" ", 1)
    path = url.split("?")[0].rstrip("/")
    if path == "/batch/storage/v1":
        # Beam deletes so, what no attempt has left behind included.
        return "objects.delete", ""
    found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/[^/]+(?:/o(?:/(.+))?)?", path)
    assert found, request
    if method == "GET":
        what = (
            "objects.get" if found[1] else "objects.list" if path.endswith("/o") else "buckets.get"
        )
    else:
        what = {"DELETE": "objects.delete", "POST": "objects.create", "PUT": "objects.create"}[
            method
        ]
    return what, found[1] or "".join(re.findall(r"[?&](?:name|prefix)=([^&]+)", url))


def written(store: Store, command: str) -> dict[str, bytes]:
    try:
        return store.objects(f"out/{command}/")
    except KeyError:
        return {}


def test_the_graph_is_written_and_nothing_else(command: str, launch: Launch) -> None:
    assert launch.written == {}
    assert launch.done.stdout.splitlines()[-1] == "the graph is built; nothing has run"
    leaves = {
        t.unique_name.split("/")[0]
        for t in launch.graph.components.transforms.values()
        if not t.subtransforms
    }
    assert leaves >= STEPS[command]


def test_the_job_is_as_the_parameters_say(command: str, launch: Launch) -> None:
    assert (launch.job["name"], launch.job["labels"]) == (
        "nightly-2026-11-25",
        {"goog-dataflow-provided-template-type": "flex", "team": "vision"},
    )
    (pool,) = launch.job["environment"]["workerPools"]
    assert {one["containerImage"] for one in pool["sdkHarnessContainerImages"]} == {IMAGE}
    # The image holds the programs.
    assert {one["name"] for one in pool.get("packages", [])} == {
        "submission_environment_dependencies.txt"
    }
    hints = {
        one.resource_hints.get("beam:resources:accelerator:v1")
        for one in launch.graph.components.environments.values()
    }
    assert (PARAMETERS[command].get("accelerator", "").encode() or None) in hints


def test_the_graph_alone_leaves_a_complete_result(
    command: str, launch: Launch, store: Store
) -> None:
    """What Dataflow would be given runs here, in another process than the one that built it."""
    graph = beam_runner_api_pb2.Pipeline.FromString(launch.graph.SerializeToString())
    for environment in graph.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    options = PipelineOptions([])
    result = FnApiRunner().run_pipeline(
        beam.Pipeline.from_runner_api(graph, FnApiRunner(), options), options
    )
    result.wait_until_finish()
    output = f"{HERE}/out/{command}"
    found = manifests.read(output, FeatureManifest if command == "features" else Manifest, "output")
    assert found.kind == {"score": "influence"}.get(command, command)
    for file in found.files:
        assert file.name in written(store, command)
    extra = {
        "influence": {"train_features/manifest.json", "test_features/manifest.json"},
        "audit": {"report.html", "summary.json"},
    }
    assert set(written(store, command)) >= extra.get(command, set())
    # What templates/terraform grants the workers: roles/storage.objectUser and legacyBucketReader
    # on the bucket of results, and roles/storage.objectViewer on those of the data.
    asked = {permission(request) for request in store.requests}
    assert {what for what, _ in asked} <= {
        "objects.get",
        "objects.list",
        "objects.create",
        "objects.delete",
        "buckets.get",
    }
    read_only = {
        what
        for what, name in asked
        if name.startswith(("examples/", "checkpoints/", "train_features/", "test_features/"))
    }
    assert read_only and read_only <= {"objects.get", "objects.list"}
