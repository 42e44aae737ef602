"""The Terraform configuration, as far as it can be looked at without Terraform and Google's
provider.
"""

from __future__ import annotations

import re
from typing import Any

import hcl2
import pytest

from pipeline.nightly.argument import FIELDS
from tests.fakes.dataflow_service import ENVIRONMENT
from tests.fakes.dockerfile import TEMPLATES
from tests.fakes.nights import ARGUMENT

DIRECTORY = TEMPLATES / "terraform"
TEXT = {path.name: path.read_text() for path in DIRECTORY.glob("*.tf")}


def unquoted(value: Any) -> Any:
    """A parsed file without the quotes that the parser leaves at names and texts."""
    if isinstance(value, dict):
        return {
            unquoted(key): unquoted(one)
            for key, one in value.items()
            if not str(key).startswith("__")
        }
    if isinstance(value, list):
        return [unquoted(one) for one in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def parsed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = unquoted(hcl2.loads((DIRECTORY / name).read_text()))
    return content


@pytest.fixture(scope="module")
def main() -> dict[str, Any]:
    return parsed("main.tf")


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    return {
        name: content for one in parsed("variables.tf")["variable"] for name, content in one.items()
    }


@pytest.fixture(scope="module")
def resources(main: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{kind}.{name}": body
        for one in main["resource"]
        for kind, named in one.items()
        for name, body in named.items()
    }


def test_every_variable_is_described_and_used(variables: dict[str, Any]) -> None:
    used = {
        name
        for text in TEXT.values()
        for name in re.findall(r"\bvar\.(\w+)", re.sub(r"#.*", "", text))
    }
    assert used == set(variables)
    elsewhere = TEXT["main.tf"] + TEXT["outputs.tf"] + TEXT["versions.tf"]
    for name, content in variables.items():
        assert content["description"].endswith((".", "…")) and content["type"]
        assert f"var.{name}" in elsewhere, name
        for validation in content.get("validation", ()):
            assert validation["error_message"].endswith(".") and f"var.{name}" in str(
                validation["condition"]
            )


def test_the_example_gives_what_has_to_be_given(variables: dict[str, Any]) -> None:
    example = parsed("terraform.tfvars.example")
    assert set(example) <= set(variables)
    assert set(example) >= {name for name, content in variables.items() if "default" not in content}
    for name, content in variables.items():
        for validation in (
            content.get("validation", ()) if isinstance(example.get(name), str) else ()
        ):
            (regex,) = re.findall(
                r'regex\("+(.*?)"+,', str(validation["condition"]).replace("\\\\", "\\")
            )
            assert re.search(regex, example[name]), name


def test_what_is_named_is_there(resources: dict[str, Any]) -> None:
    for text in TEXT.values():
        for name in re.findall(r"\b(google_\w+\.\w+)", re.sub(r"#.*", "", text)):
            assert name in resources, name
    for path in re.findall(r'file\("\$\{path\.module\}/([^"]+)"\)', TEXT["main.tf"]):
        assert (DIRECTORY / path).exists(), path
    assert (TEMPLATES / "workflow.yaml").exists()


def test_the_argument_is_what_the_command_reads() -> None:
    (block,) = re.findall(r"argument = merge\(\n(.*?)\n  \)\n", TEXT["main.tf"], flags=re.DOTALL)
    given = set(re.findall(r"^      (\w+) +=", block, flags=re.MULTILINE)) | set(
        re.findall(r"^    \{ for name, value in \{ (\w+) = ", block, flags=re.MULTILINE)
    )
    assert given | {"date"} == set(FIELDS)
    assert given >= set(ARGUMENT)
    (environment,) = re.findall(
        r"environment = merge\(var.environment, \{\n(.*?)\n      \}, \{ "
        r"for "
        r"name, "
        r"value "
        r"in "
        r"\{ "
        r"diskSizeGb = ",
        block,
        flags=re.DOTALL,
    )
    assert set(re.findall(r"^ +(\w+) +=", environment, flags=re.MULTILINE)) <= ENVIRONMENT


def test_accounts_may_do_what_they_have_to_and_nothing_else(resources: dict[str, Any]) -> None:
    granted: dict[str, set[tuple[str, str]]] = {}
    for name, body in resources.items():
        if "_iam_" in name:
            (account,) = re.findall(r"google_service_account\.(\w+)\.member", str(body["member"]))
            where = name.split("_iam_")[0].removeprefix("google_")
            granted.setdefault(account, set()).add((where, body["role"]))
    assert granted == {
        "worker": {
            ("project", "roles/dataflow.worker"),
            ("project", "roles/bigquery.jobUser"),
            ("bigquery_dataset", "roles/bigquery.dataEditor"),
            ("storage_bucket", "roles/storage.objectUser"),
            ("storage_bucket", "roles/storage.legacyBucketReader"),
            ("storage_bucket", "roles/storage.objectViewer"),
            ("artifact_registry_repository", "roles/artifactregistry.reader"),
        },
        "night": {
            ("project", "roles/dataflow.developer"),
            ("service_account", "roles/iam.serviceAccountUser"),
            ("storage_bucket", "roles/storage.objectUser"),
        },
        "workflow": {
            ("project", "roles/logging.logWriter"),
            ("project", "roles/run.viewer"),
            ("cloud_run_v2_job", "roles/run.jobsExecutorWithOverrides"),
            ("storage_bucket", "roles/storage.objectViewer"),
        },
        "scheduler": {("project", "roles/workflows.invoker")},
    }
    # Members are added; a policy would take away what others have been granted.
    assert not any(
        name.split(".")[0].endswith(("_iam_policy", "_iam_binding")) for name in resources
    )
    assert "worker" in str(
        resources["google_storage_bucket_iam_member.worker_reads_data"]["member"]
    )
    assert resources["google_service_account_iam_member.night_uses_worker"][
        "service_account_id"
    ].strip("${}") == ("google_service_account.worker.name")


def test_the_schedule_starts_the_workflow_as_its_own_account(resources: dict[str, Any]) -> None:
    job = resources["google_cloud_scheduler_job.nightly"]
    (target,) = job["http_target"]
    assert target["uri"].startswith("https://workflowexecutions.googleapis.com/v1/") and target[
        "uri"
    ].endswith("/executions")
    assert "google_service_account.scheduler.email" in str(target["oauth_token"])
    assert "google_service_account.workflow" in str(
        resources["google_workflows_workflow.nightly"]["service_account"]
    )


def test_the_cloud_run_job_runs_the_command_as_its_own_account(resources: dict[str, Any]) -> None:
    (execution,) = resources["google_cloud_run_v2_job.nightly"]["template"]
    (task,) = execution["template"]
    assert "google_service_account.night.email" in str(task["service_account"])
    assert task["timeout"] == "604800s"
    (container,) = task["containers"]
    assert unquoted(container["command"]) == ["python", "-m", "pipeline.nightly"]
    assert "local.argument" in str(container["args"])
    assert "var.night_image" in container["image"] and "var.worker_image" in container["image"]


def test_the_results_are_nobody_elses(resources: dict[str, Any]) -> None:
    bucket = resources["google_storage_bucket.results"]
    assert (
        bucket["public_access_prevention"] == "enforced"
        and bucket["uniform_bucket_level_access"] is True
    )
    assert "force_destroy" not in bucket


def test_every_resource_waits_for_its_api(resources: dict[str, Any], main: dict[str, Any]) -> None:
    (local,) = main["locals"]
    assert len(local["apis"]) == len(set(local["apis"])) and all(
        api.endswith(".googleapis.com") for api in local["apis"]
    )
    for name, body in resources.items():
        waits = str(body)
        assert (
            name == "google_project_service.apis"
            or "google_project_service.apis" in waits
            or re.search(r"google_\w+\.\w+", waits)
        )
