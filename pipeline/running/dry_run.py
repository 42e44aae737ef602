"""A Dataflow job that was built but not submitted, as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

# A list of what is installed where the job is submitted, which Beam stages for a person to compare.
_SUBMITTER = "submission_environment_dependencies.txt"
_ACCELERATOR = "beam:resources:accelerator:v1"
_TABLE_NEEDS = (
    "BigQuery's API; roles/bigquery.jobUser in the project and roles/bigquery.dataEditor on the "
    "dataset, for workers and whoever submits"
)
_NEEDS = (
    "the APIs of Dataflow, Compute Engine and Cloud Storage; roles/dataflow.worker for {account}, "
    "which reads the inputs and writes the output and the temporary files; "
    "roles/dataflow.developer for whoever submits"
)


def describe(job: Any, options: dict[str, Any]) -> str:
    """What a job that was built but not submitted would be, and what it would need, a line each.

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
    hints: dict[str, list[str]] = {}
    for transform in leaves:
        environment = graph.components.environments.get(transform.environment_id)
        hint = environment.resource_hints.get(_ACCELERATOR) if environment is not None else None
        if hint:
            hints.setdefault(hint.decode(), []).append(transform.unique_name)
    staged = sorted(
        {
            _staged_name(part)
            for one in graph.components.environments.values()
            for part in one.dependencies
        }
        - {_SUBMITTER}
    )
    images = sorted({_image(one) for one in graph.components.environments.values() if one.payload})
    experiments = options.get("experiments") or []
    account = options.get("service_account_email")
    rows = [
        (
            "job",
            f"{options['job_name'] or 'a name with the time'} "
            "in "
            f"{options['project']}, "
            f"{options['region']}",
        ),
        ("graph", f"{len(leaves)} steps, {graph.ByteSize() / 1e3:.1f} KB"),
        *((name, f"{count} {'step' if count == 1 else 'steps'}") for name, count in steps.items()),
        *((f"hint {hint}", ", ".join(names)) for hint, names in hints.items()),
        ("container image", ", ".join(images)),
        ("staged", ", ".join(staged) or "nothing: the image must hold this project"),
        (
            "machines",
            f"{options.get('machine_type') or 'the type that Dataflow chooses'}, "
            f"{options.get('disk_size_gb') or 'default'} GB of disk, "
            f"at most {options.get('max_num_workers') or 'as many as the quota allows'}",
        ),
        (
            "worker processes",
            "one on a machine"
            if "no_use_multiple_sdk_containers" in experiments
            else "one for each processor, which share --memory_gb",
        ),
        ("temporary files", options.get("temp_location") or options.get("staging_location")),
        ("labels", ", ".join(map(str, options.get("labels") or [])) or "none"),
        (
            "needs",
            "the APIs of Dataflow, Compute Engine and Cloud Storage; roles/dataflow.worker "
            "for "
            f"{account or 'the default worker account'}, "
            "which reads the inputs and writes the "
            "output "
            "and "
            "the "
            "temporary "
            "files; "
            "roles/dataflow.developer for whoever submits",
        ),
        *([("table needs", _TABLE_NEEDS)] if "WriteTable" in steps else []),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _staged_name(artifact: Any) -> str:
    from apache_beam.portability.api import beam_runner_api_pb2

    return str(
        beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(
            artifact.role_payload
        ).staged_name
    )


def _image(environment: Any) -> str:
    from apache_beam.portability.api import beam_runner_api_pb2

    return str(beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image)
