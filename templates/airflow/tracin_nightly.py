"""A night in Airflow: the features of the training set and of the test set, influence on the test
set, and the audit.

For those who have an Airflow; it does what `templates/workflow.yaml` does. Needs the providers
`apache-airflow-providers-google` and `apache-airflow-providers-apache-beam`, which the first one's
Dataflow operators import. Copy this file to the DAGs, and give the Airflow variable
`tracin_nightly` the argument of that workflow, in JSON: `terraform output -raw argument` prints it,
and `docs/nightly.md` tells of each part.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.providers.google.cloud.hooks.gcs import GCSHook
from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator

try:
    from airflow.sdk import Variable
except ImportError:  # before Airflow 3
    from airflow.models import Variable

VARIABLE = "tracin_nightly"
# From task to template.
STEPS = {
    "train_features": "features",
    "test_features": "features",
    "influence": "score",
    "audit": "audit",
}


class RunTemplate(DataflowStartFlexTemplateOperator):
    """Runs a template and waits for its job, unless its result is complete, which the program would
    not do again.

    What it runs with is made when it runs, from the variable and the date, so that a file that
    Airflow reads every few seconds asks nobody.
    """

    # Nothing is given here that Jinja would fill in.
    template_fields = ()

    def __init__(self, *, step: str, **rest: Any) -> None:
        # Not deferred, whatever the configuration says, since what a failed job means is looked up
        # after it.
        waits = {"append_job_name": False, "wait_until_finished": True, "deferrable": False}
        super().__init__(task_id=step, body={}, location="", **waits, **rest)
        self.step = step

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Launches the job and waits for its end.

        Raises:
            AirflowSkipException: there is no test set.
            AirflowFailException: the audit is complete and crosses a threshold; another try would
                change nothing.
        """
        settings: dict[str, Any] = Variable.get(VARIABLE, deserialize_json=True)
        if self.step in ("test_features", "influence") and not settings.get("test"):
            raise AirflowSkipException("no test set: there is nothing to explain")
        store = GCSHook(gcp_conn_id=self.gcp_conn_id)
        night = f"{settings['prefix']}/{context['ds']}/"
        manifest = f"{night}{self.step}/manifest.json"
        # Another try of this task is there for what a first one left, a table's rows.
        if store.exists(settings["bucket"], manifest) and not self._writes_rows(
            settings, context["ti"].try_number
        ):
            self.log.info("gs://%s/%s is there: nothing to do", settings["bucket"], manifest)
            return None
        previous = last_night(
            store.list(settings["bucket"], match_glob=f"{settings['prefix']}/*/*/manifest.json"),
            night,
            self.step,
        )
        self.location = settings["region"]
        self.body = request(settings, self.step, context["ds"], previous, context["ti"].try_number)
        try:
            return super().execute(context)
        except AirflowException:
            # A job that writes a table, too, may have failed at that, and another try then writes
            # the rows.
            if (
                store.exists(settings["bucket"], manifest)
                and "output_table" not in self.body["launchParameter"]["parameters"]
            ):
                report = f"gs://{settings['bucket']}/{night}audit/report.html"
                raise AirflowFailException(
                    f"drift; the audit is complete and crosses a threshold, see {report}"
                ) from None
            raise

    def _writes_rows(self, settings: Mapping[str, Any], attempt: int) -> bool:
        return attempt > 1 and "output_table" in settings.get(
            {"influence": "score", "audit": "audit"}.get(self.step, ""), {}
        )


def last_night(manifests: list[str], night: str, step: str) -> str | None:
    """Where in the bucket the last night before one is whose audit is complete, and for an
    extraction the same set; None where none is.

    Args:
        manifests: names of the manifests of all nights.
        night: the directory of this one.
        step: what is to be run.
    """
    there = set(manifests)
    earlier = {
        name.removesuffix("audit/manifest.json")
        for name in there
        if name.endswith("/audit/manifest.json")
    }
    last = max((name for name in earlier if name < night), default=None)
    return (
        last
        if last and (STEPS[step] != "features" or f"{last}{step}/manifest.json" in there)
        else None
    )


def request(
    settings: Mapping[str, Any], step: str, date: str, previous: str | None, attempt: int
) -> dict[str, Any]:
    """The request that launches a step's template: the body of
    `projects.locations.flexTemplates.launch`.

    Args:
        settings: the variable's content.
        step: of `STEPS`.
        date: of the night.
        previous: where in the bucket the last night is, or None.
        attempt: 1 at first. Only then is the last night's set copied from: the program refuses a
            set that other checkpoints made.
    """
    bucket = f"gs://{settings['bucket']}/"
    night = f"{bucket}{settings['prefix']}/{date}/"
    parameters: dict[str, str] = {"output": night + step}
    if STEPS[step] == "features":
        parameters |= {
            **settings["model"],
            **settings["train" if step == "train_features" else "test"],
        }
        if previous and attempt == 1 and settings.get("reuse", True):
            parameters["base"] = f"{bucket}{previous}{step}"
    elif step == "influence":
        parameters |= settings.get("score", {})
        parameters |= {
            "train_features": f"{night}train_features",
            "test_features": f"{night}test_features",
        }
    else:
        parameters |= settings.get("audit", {})
        parameters["features"] = f"{night}train_features"
        if settings.get("test"):
            parameters["test_features"] = f"{night}test_features"
        if previous:
            # Thresholds that compare are refused where there is nothing to compare with.
            parameters |= {**settings.get("drift", {}), "previous": f"{bucket}{previous}audit"}
    launch = {
        "jobName": f"tracin-{step.replace('_', '-')}-{date}-{attempt}",
        "containerSpecGcsPath": f"{settings['templates']}/{STEPS[step]}.json",
        "parameters": parameters,
        "environment": settings["environment"],
    }
    return {"launchParameter": launch}


with DAG(
    "tracin_nightly",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    # A night compares itself with the last one.
    max_active_runs=1,
    default_args={
        "retries": 1,
        "retry_delay": datetime.timedelta(minutes=10),
        "execution_timeout": datetime.timedelta(hours=12),
    },
    tags=["tracin"],
    doc_md=__doc__,
) as dag:
    train, test = RunTemplate(step="train_features"), RunTemplate(step="test_features")
    influence, audit = (
        RunTemplate(step="influence"),
        RunTemplate(step="audit", trigger_rule="none_failed"),
    )
    train >> test >> influence >> audit
