output "image" {
  description = "Where `make -C templates build` pushes the images."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}/tracin"
}

output "results" {
  description = "Where the nights are, one a date."
  value       = "gs://${google_storage_bucket.results.name}/${var.prefix}"
}

output "argument" {
  description = "The argument of an execution: gcloud workflows run tracin-nightly --data=\"$(terraform output -raw argument)\""
  value       = jsonencode(local.argument)
}

output "job" {
  description = "The Cloud Run job that runs a night: gcloud run jobs execute tracin-nightly runs one without the workflow."
  value       = google_cloud_run_v2_job.nightly.id
}
