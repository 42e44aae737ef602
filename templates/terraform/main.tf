# A schedule that runs templates/workflow.yaml every night, the Cloud Run job that it runs, and the accounts that may do what is done, each no
# more than that. Dataflow's jobs are launched by the Cloud Run job and are no resources here: Terraform would launch them once, and again when something else changes.

locals {
  apis = [
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
    "workflowexecutions.googleapis.com",
    "workflows.googleapis.com",
  ]

  # What `python -m pipeline.nightly` reads.
  argument = merge(
    {
      project   = var.project
      bucket    = google_storage_bucket.results.name
      prefix    = var.prefix
      templates = "gs://${google_storage_bucket.results.name}/templates"
      region    = var.region
      environment = merge(var.environment, {
        serviceAccountEmail   = google_service_account.worker.email
        tempLocation          = "gs://${google_storage_bucket.results.name}/tmp"
        stagingLocation       = "gs://${google_storage_bucket.results.name}/tmp/staging"
        sdkContainerImage     = var.worker_image
        maxWorkers            = var.max_workers
        additionalExperiments = ["no_use_multiple_sdk_containers"]
      }, { for name, value in { diskSizeGb = var.disk_gb } : name => value if value != null })
      model    = var.model
      train    = var.train
      score    = var.score
      audit    = var.audit
      drift    = var.drift
      reuse    = var.reuse
      attempts = var.attempts
      hours    = var.hours
    },
    { for name, value in { test = var.test } : name => value if value != null },
  )
}

resource "google_project_service" "apis" {
  for_each = toset(local.apis)

  service            = each.value
  disable_on_destroy = false
}

# Where everything is

resource "google_storage_bucket" "results" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Else what is deleted is kept, and paid for, for a week; most of it are temporary files.
  soft_delete_policy {
    retention_duration_seconds = 0
  }

  lifecycle_rule {
    condition {
      age            = 7
      matches_prefix = ["tmp/"]
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age            = var.keep_days
      matches_prefix = ["${var.prefix}/"]
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [google_project_service.apis]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.repository
  location      = var.region
  format        = "DOCKER"
  description   = "Launchers of tracin-beam's templates, and what their workers run."

  depends_on = [google_project_service.apis]
}

# What jobs run as: launchers and workers.

resource "google_service_account" "worker" {
  account_id   = "tracin-worker"
  display_name = "Launchers and workers of tracin-beam's jobs"

  depends_on = [google_project_service.apis]
}

# To be a worker of a Dataflow job: fetch work, tell its state, write logs and metrics.
resource "google_project_iam_member" "worker_works" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

# Results and temporary files; staged graphs are replaced, so it may also delete.
resource "google_storage_bucket_iam_member" "worker_writes" {
  bucket = google_storage_bucket.results.name
  role   = "roles/storage.objectUser"
  member = google_service_account.worker.member
}

# Beam asks for the bucket's own settings.
resource "google_storage_bucket_iam_member" "worker_looks_at_bucket" {
  bucket = google_storage_bucket.results.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_reads_data" {
  for_each = var.data_buckets

  bucket = each.value
  role   = "roles/storage.objectViewer"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker_pulls" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# Tables, where `output_table` is among the parameters: to run queries, and to write to that dataset.
resource "google_project_iam_member" "worker_queries" {
  count = var.dataset == null ? 0 : 1

  project = var.project
  role    = "roles/bigquery.jobUser"
  member  = google_service_account.worker.member
}

resource "google_bigquery_dataset_iam_member" "worker_writes_tables" {
  count = var.dataset == null ? 0 : 1

  dataset_id = var.dataset
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.worker.member
}

# What a night runs as: the Cloud Run job that launches Dataflow's jobs and follows them.

resource "google_service_account" "night" {
  account_id   = "tracin-night"
  display_name = "The nights of tracin-beam"

  depends_on = [google_project_service.apis]
}

# To launch jobs and look at them.
resource "google_project_iam_member" "night_launches" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.night.member
}

# To give a job the workers' account, and no other.
resource "google_service_account_iam_member" "night_uses_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.night.member
}

# To find templates, the last night and what is complete, and to write night.json, which it replaces. The jobs that it launches may write here
# anyway.
resource "google_storage_bucket_iam_member" "night_writes_outcome" {
  bucket = google_storage_bucket.results.name
  role   = "roles/storage.objectUser"
  member = google_service_account.night.member
}

resource "google_cloud_run_v2_job" "nightly" {
  name                = "tracin-nightly"
  location            = var.region
  deletion_protection = false

  template {
    template {
      service_account = google_service_account.night.email
      # The most that a task may have. A task that is ended, by this or by maintenance, is started again and takes up what it left.
      timeout     = "604800s"
      max_retries = 3

      containers {
        image   = coalesce(var.night_image, trimsuffix(var.worker_image, "-gpu"))
        command = ["python", "-m", "pipeline.nightly"]
        # An execution gives others, with its date.
        args = [jsonencode(local.argument)]

        # It waits nearly all of the time; a job cannot have less than one processor.
        resources {
          limits = { cpu = "1", memory = "512Mi" }
        }
      }
    }
  }

  depends_on = [google_project_service.apis]
}

# What the workflow runs as: it may run that job and read its outcome.

resource "google_service_account" "workflow" {
  account_id   = "tracin-workflow"
  display_name = "The workflow of tracin-beam"

  depends_on = [google_project_service.apis]
}

resource "google_cloud_run_v2_job_iam_member" "workflow_runs_night" {
  name     = google_cloud_run_v2_job.nightly.name
  location = google_cloud_run_v2_job.nightly.location
  role     = "roles/run.jobsExecutorWithOverrides"
  member   = google_service_account.workflow.member
}

# To wait for its operation, which belongs to the project and not to the job.
resource "google_project_iam_member" "workflow_waits" {
  project = var.project
  role    = "roles/run.viewer"
  member  = google_service_account.workflow.member
}

resource "google_storage_bucket_iam_member" "workflow_reads_outcome" {
  bucket = google_storage_bucket.results.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.workflow.member
}

resource "google_project_iam_member" "workflow_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.workflow.member
}

resource "google_workflows_workflow" "nightly" {
  name                = "tracin-nightly"
  region              = var.region
  description         = "Features, influence and audit of a training set, every night"
  service_account     = google_service_account.workflow.id
  source_contents     = file("${path.module}/../workflow.yaml")
  call_log_level      = "LOG_ERRORS_ONLY"
  deletion_protection = false

  depends_on = [google_project_service.apis]
}

# What the schedule runs as: it may start workflows, and nothing else.

resource "google_service_account" "scheduler" {
  account_id   = "tracin-scheduler"
  display_name = "The schedule of tracin-beam"

  depends_on = [google_project_service.apis]
}

resource "google_project_iam_member" "scheduler_starts" {
  project = var.project
  role    = "roles/workflows.invoker"
  member  = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "nightly" {
  name        = "tracin-nightly"
  region      = var.region
  description = "Starts the workflow tracin-nightly"
  schedule    = var.schedule
  time_zone   = var.time_zone
  paused      = var.paused

  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
  }

  http_target {
    http_method = "POST"
    uri         = "https://workflowexecutions.googleapis.com/v1/${google_workflows_workflow.nightly.id}/executions"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(jsonencode({ argument = jsonencode(local.argument) }))

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [google_project_iam_member.scheduler_starts]
}

# Who is told

resource "google_monitoring_notification_channel" "email" {
  count = var.alert_email == null ? 0 : 1

  display_name = "Nights of tracin-beam"
  type         = "email"
  labels       = { email_address = var.alert_email }

  depends_on = [google_project_service.apis]
}

resource "google_monitoring_alert_policy" "failed" {
  count = var.alert_email == null ? 0 : 1

  display_name          = "A night of tracin-beam failed or found drift"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email[0].id]

  conditions {
    display_name = "The workflow ended in an error"

    condition_threshold {
      filter = join(" AND ", [
        "resource.type = \"workflows.googleapis.com/Workflow\"",
        "resource.labels.workflow_id = \"${google_workflows_workflow.nightly.name}\"",
        "metric.type = \"workflows.googleapis.com/finished_execution_count\"",
        "metric.labels.status = \"FAILED\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_DELTA"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "The execution's error says which: it begins with \"drift;\" and names the report, or it names the job that failed. night.json in the night's directory says the same, the log of the Cloud Run job tracin-nightly more. See docs/nightly.md of tracin-beam."
  }
}
