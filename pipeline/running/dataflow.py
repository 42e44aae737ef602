"""Dataflow's flags, checked before anything is loaded, and a job told before it is submitted.

This module imports nothing heavy.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

RUNNER = "DataflowRunner"

# A list of what is installed where the job is submitted, which Beam stages for a person to compare.
_SUBMITTER = "submission_environment_dependencies.txt"
_ACCELERATOR = "beam:resources:accelerator:v1"
_TABLE_NEEDS = (
    "BigQuery's API; roles/bigquery.jobUser in the project and "
    "roles/bigquery.dataEditor on the dataset, for workers and whoever submits"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION = re.compile(r"[a-z]+-[a-z]+\d+")
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def mistake(flags: Sequence[str]) -> str | None:
    """What keeps Beam's flags from being a Dataflow job, in one line; None where nothing does, or
    another runner is named.
    """
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("runner", "project", "region", "temp_location", "staging_location", "job_name"):
        given.add_argument(f"--{name}")
    args, _ = given.parse_known_args([flag for flag in flags if flag not in ("-h", "--help")])
    if (args.runner or "").rsplit(".", 1)[-1].lower() not in (RUNNER.lower(), "dataflow"):
        return None
    # Beam takes either location for the other.
    location = args.temp_location or args.staging_location
    missing = [
        text
        for value, text in (
            (args.project, "--project=PROJECT"),
            (args.region, "--region=REGION"),
            (location, "--temp_location=gs://BUCKET/tmp"),
        )
        if not value
    ]
    if missing:
        return f"--runner={args.runner} needs {', '.join(missing)}"
    if not PROJECT.fullmatch(args.project):
        return (
            "--project: expected a project's id, as `gcloud projects list` shows it, found "
            f"{args.project!r}"
        )
    if not _REGION.fullmatch(args.region):
        return f"--region: expected a region such as europe-west1, found {args.region!r}"
    if args.job_name and not _JOB_NAME.fullmatch(args.job_name):
        return (
            "--job_name: expected up to 63 small letters, digits and hyphens, a letter first "
            f"and no hyphen last, found {args.job_name!r}"
        )
    for name in ("temp_location", "staging_location"):
        value = getattr(args, name)
        wrong = value and _location_mistake(value)
        if wrong:
            return f"--{name}={value!r}: {wrong}"
    return None


def _location_mistake(url: str) -> str | None:
    """What is wrong with a directory of a bucket, after Cloud Storage's rules of naming."""
    found = re.fullmatch(r"gs://([^/]*)(/[^\r\n]*)?", url)
    if not found:
        return "expected gs://BUCKET/DIRECTORY"
    bucket, path = found.groups()
    if not _BUCKET.fullmatch(bucket):
        return (
            f"no bucket can be called {bucket!r}: names are of small letters, digits, '-', '_' "
            "and '.', with a letter or digit at both ends"
        )
    if not 3 <= len(bucket) <= (222 if "." in bucket else 63) or any(
        len(part) > 63 for part in bucket.split(".")
    ):
        return (
            f"no bucket can be called {bucket!r}: names have 3 to 63 characters, with dots up "
            "to 222 of which at most 63 between two"
        )
    if (
        ".." in bucket
        or re.fullmatch(r"\d+(\.\d+){3}", bucket)
        or bucket.startswith("goog")
        or "google" in bucket
    ):
        return (
            f"no bucket can be called {bucket!r}: two dots in a row, IP addresses, 'goog' in "
            "front and 'google' anywhere are reserved"
        )
    if path is None:
        return f"expected a directory in the bucket, such as {url}/tmp"
    return None


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
            f"{options['job_name'] or 'a name with the time'} in {options['project']}, "
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
            "the APIs of Dataflow, Compute Engine and Cloud Storage; roles/dataflow.worker for "
            f"{account or 'the default worker account'}, which reads the inputs and writes the "
            "output and the temporary files; roles/dataflow.developer for whoever submits",
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
