# A schedule that runs templates/workflow.yaml every night, and the accounts that may do what it does, each no more than that.
# Batch jobs are launched by the workflow and are no resources here: Terraform would launch them once, and again when something else changes.

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
    "storage.googleapis.com",
    "workflowexecutions.googleapis.com",
    "workflows.googleapis.com",
  ]

  # What templates/workflow.yaml says of its argument.
  argument = merge(
    {
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

# What the workflow runs as.

resource "google_service_account" "workflow" {
  account_id   = "tracin-workflow"
  display_name = "The nights of tracin-beam"

  depends_on = [google_project_service.apis]
}

# To launch jobs and look at them.
resource "google_project_iam_member" "workflow_launches" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.workflow.member
}

# To give a job the workers' account, and no other.
resource "google_service_account_iam_member" "workflow_uses_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.workflow.member
}

# To find templates, the last night and what is complete.
resource "google_storage_bucket_iam_member" "workflow_reads" {
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
    content   = "The execution's error says which: it begins with \"drift;\" and names the report, or it names the job that failed. See docs/nightly.md of tracin-beam."
  }
}
