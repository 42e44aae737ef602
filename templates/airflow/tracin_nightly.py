"""A night in Airflow: the Cloud Run job that templates/terraform makes, run once a day.

For those who have an Airflow; `templates/workflow.yaml` runs the same job. Needs the provider
`apache-airflow-providers-google`. Copy this file to the DAGs, and give the Airflow variable
`tracin_nightly` the argument of a night, in JSON: `terraform output -raw argument` prints it, and
`docs/nightly.md` explains each part. The connection's account needs the role
`roles/run.developer`, and has to read the bucket.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException
from airflow.providers.google.cloud.hooks.gcs import GCSHook
from airflow.providers.google.cloud.operators.cloud_run import CloudRunExecuteJobOperator

EXECUTION = "{{ run_id }} {{ ti.try_number }}"


class RunNight(CloudRunExecuteJobOperator):
    """Runs the job, and ends with the message that the night left."""

    template_fields = (*CloudRunExecuteJobOperator.template_fields, "outcome", "execution")

    def __init__(self, *, outcome: Mapping[str, str], execution: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.outcome = outcome
        self.execution = execution

    def execute(self, context: Any) -> Any:
        """Runs the job.

        Raises:
            AirflowFailException: a step failed as often as it may, or the audit crosses a
                threshold; another try would change nothing.
        """
        try:
            return super().execute(context)
        except AirflowException:
            store = GCSHook(gcp_conn_id=self.gcp_conn_id)
            left = json.loads(store.download(self.outcome["bucket"], self.outcome["name"]))
            if left["execution"] == self.execution and left["status"] in ("failed", "drift"):
                raise AirflowFailException(left["message"]) from None
            raise


with DAG(
    "tracin_nightly",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    catchup=False,
    # A night compares itself with the last one.
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": datetime.timedelta(minutes=10)},
    tags=["tracin"],
    doc_md=__doc__,
) as dag:
    ARGUMENT = "var.json.tracin_nightly"
    RunNight(
        task_id="night",
        project_id=f"{{{{ {ARGUMENT}.project }}}}",
        region=f"{{{{ {ARGUMENT}.region }}}}",
        job_name="tracin-nightly",
        overrides={
            "container_overrides": [
                {
                    "args": [
                        "{{ var.value.tracin_nightly }}",
                        "--date={{ ds }}",
                        f"--execution={EXECUTION}",
                    ]
                }
            ]
        },
        outcome={
            "bucket": f"{{{{ {ARGUMENT}.bucket }}}}",
            "name": f"{{{{ {ARGUMENT}.prefix }}}}/{{{{ ds }}}}/night.json",
        },
        execution=EXECUTION,
        # What a failed job means is looked up after it, whatever the configuration says.
        deferrable=False,
    )
