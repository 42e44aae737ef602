"""A Dataflow job that was built but not submitted, as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# A list of what is installed where the job is submitted, which Beam stages for a person to compare.
_SUBMITTER = "submission_environment_dependencies.txt"
_ACCELERATOR = "beam:resources:accelerator:v1"
_NEEDS = (
    "the APIs of Dataflow, Compute Engine and Cloud Storage; roles/dataflow.worker for {account}, "
    "which reads the inputs and writes the output and the temporary files; "
    "roles/dataflow.developer for whoever submits"
)
_TABLE_NEEDS = (
    "BigQuery's API; roles/bigquery.jobUser in the project and roles/bigquery.dataEditor on the "
    "dataset, for workers and whoever submits"
)


def describe(job: Any, options: Mapping[str, Any]) -> str:
    """Returns what a job would be, and what it would need, a line each.

    Args:
        job: Beam's `apiclient.Job`, as a dry run leaves it.
        options: all of Beam's options, by name.
    """
    graph = job.proto_pipeline
    leaves = [
        transform
        for transform in graph.components.transforms.values()
        if not transform.subtransforms
    ]
    steps = Counter(transform.unique_name.split("/")[0] for transform in leaves)
    name = options["job_name"] or "a name with the time"
    rows = [
        ("job", f"{name} in {options['project']}, {options['region']}"),
        ("graph", f"{len(leaves)} steps, {graph.ByteSize() / 1e3:.1f} KB"),
        *((name, f"{count} {'step' if count == 1 else 'steps'}") for name, count in steps.items()),
        *_hints(graph, leaves),
        *_environments(graph),
        *_workers(options),
        *([("table needs", _TABLE_NEEDS)] if "WriteTable" in steps else []),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _hints(graph: Any, leaves: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yields each accelerator with the steps that ask for it."""
    steps: dict[str, list[str]] = {}
    for transform in leaves:
        environment = graph.components.environments.get(transform.environment_id)
        hint = environment.resource_hints.get(_ACCELERATOR) if environment is not None else None
        if hint:
            steps.setdefault(hint.decode(), []).append(transform.unique_name)
    for hint, names in steps.items():
        yield f"hint {hint}", ", ".join(names)


def _environments(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields the workers' container images, and the files that are staged for them."""
    environments = graph.components.environments.values()
    images = {_image(environment) for environment in environments if environment.payload}
    yield "container image", ", ".join(sorted(images))
    staged = {
        _staged_name(artifact)
        for environment in environments
        for artifact in environment.dependencies
    }
    files = ", ".join(sorted(staged - {_SUBMITTER}))
    yield "staged", files or "nothing: the image must hold this project"


def _workers(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "machines",
        f"{options.get('machine_type') or 'the type that Dataflow chooses'}, "
        f"{options.get('disk_size_gb') or 'default'} GB of disk, "
        f"at most {options.get('max_num_workers') or 'as many as the quota allows'}",
    )
    single = "no_use_multiple_sdk_containers" in (options.get("experiments") or [])
    processes = "one for each processor, which share --memory_gb"
    yield "worker processes", "one on a machine" if single else processes
    yield "temporary files", options.get("temp_location") or options["staging_location"]
    yield "labels", ", ".join(map(str, options.get("labels") or [])) or "none"
    account = options.get("service_account_email") or "the default worker account"
    yield "needs", _NEEDS.format(account=account)


def _staged_name(artifact: Any) -> str:
    from apache_beam.portability.api import beam_runner_api_pb2

    payload = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
    return str(payload.staged_name)


def _image(environment: Any) -> str:
    from apache_beam.portability.api import beam_runner_api_pb2

    return str(beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image)
