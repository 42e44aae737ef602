variable "project" {
  type        = string
  description = "Id of the project that everything is in."

  validation {
    condition     = can(regex("^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "Give a project's id, as `gcloud projects list` shows it."
  }
}

variable "region" {
  type        = string
  description = "Region of the jobs, the bucket, the images and the schedule."

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "Give a region such as europe-west1."
  }
}

variable "bucket" {
  type        = string
  description = "Name of the bucket that is made for templates, temporary files and results."

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "Names of buckets are 3 to 63 small letters, digits, '-', '_' and '.', with a letter or digit at both ends."
  }
}

variable "repository" {
  type        = string
  default     = "tracin"
  description = "Name of the Artifact Registry repository that is made for the images."

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$", var.repository))
    error_message = "Names of repositories are small letters, digits and hyphens, a letter first and no hyphen last."
  }
}

variable "data_buckets" {
  type        = set(string)
  default     = []
  description = "Buckets that hold examples and checkpoints, which workers may then read."
}

variable "worker_image" {
  type        = string
  description = "What workers run: the image that `make -C templates build` has pushed, with its tag."

  validation {
    condition     = can(regex("^[^:@ ]+(:[0-9]+)?/[^:@ ]+(:[^:@ ]+|@sha256:[0-9a-f]{64})$", var.worker_image))
    error_message = "Give an image with its tag or digest, such as europe-west1-docker.pkg.dev/PROJECT/tracin/tracin:TAG."
  }
}

variable "night_image" {
  type        = string
  default     = null
  description = "What launches the jobs and follows them; left out, worker_image without -gpu at its end."

  validation {
    condition     = var.night_image == null || can(regex("^[^:@ ]+(:[0-9]+)?/[^:@ ]+(:[^:@ ]+|@sha256:[0-9a-f]{64})$", var.night_image))
    error_message = "Give an image with its tag or digest, such as europe-west1-docker.pkg.dev/PROJECT/tracin/tracin:TAG."
  }
}

variable "model" {
  type        = map(string)
  description = "Parameters of the template `features` for both sets, such as checkpoints and id_key."

  validation {
    condition     = contains(keys(var.model), "checkpoints")
    error_message = "An extraction needs checkpoints."
  }
}

variable "train" {
  type        = map(string)
  description = "Parameters of the template `features` for the training set: examples."

  validation {
    condition     = contains(keys(var.train), "examples")
    error_message = "An extraction needs examples."
  }
}

variable "test" {
  type        = map(string)
  default     = null
  description = "Likewise for the test set; without one there is no influence, only the audit."

  validation {
    condition     = var.test == null || can(var.test["examples"])
    error_message = "An extraction needs examples."
  }
}

variable "dataset" {
  type        = string
  default     = null
  description = "BigQuery dataset of this project that the tables are in which score or audit name as output_table."

  validation {
    condition     = var.dataset == null || can(regex("^[A-Za-z0-9_]{1,1024}$", var.dataset))
    error_message = "Names of datasets are letters, digits and underscores."
  }
}

variable "score" {
  type        = map(string)
  default     = {}
  description = "Further parameters of the template `score`, such as k."
}

variable "audit" {
  type        = map(string)
  default     = {}
  description = "Further parameters of the template `audit`, such as min_suspicion."
}

variable "drift" {
  type = map(string)
  default = {
    max_shift     = "0.2"
    fail_on_drift = "true"
  }
  description = "Parameters of an audit that has an earlier one to compare with: thresholds, and whether to fail at them."
}

variable "reuse" {
  type        = bool
  default     = true
  description = "Whether a night copies what did not change since the last one; false where each has other checkpoints."
}

variable "attempts" {
  type        = number
  default     = 2
  description = "How often a job is tried."

  validation {
    condition     = var.attempts >= 1 && floor(var.attempts) == var.attempts
    error_message = "Give a whole number of at least 1."
  }
}

variable "hours" {
  type        = number
  default     = 12
  description = "How long one job may take."

  validation {
    condition     = var.hours >= 1 && floor(var.hours) == var.hours
    error_message = "Give a whole number of hours of at least 1."
  }
}

variable "schedule" {
  type        = string
  default     = "0 2 * * *"
  description = "When nights begin, as cron has it. Their dates are those of UTC."
}

variable "time_zone" {
  type        = string
  default     = "Etc/UTC"
  description = "Time zone of the schedule."
}

variable "paused" {
  type        = bool
  default     = false
  description = "Whether the schedule is there and starts nothing, as until the images are built."
}

variable "max_workers" {
  type        = number
  default     = 10
  description = "At most so many machines for a job."

  validation {
    condition     = var.max_workers >= 1
    error_message = "A job needs a machine."
  }
}

variable "disk_gb" {
  type        = number
  default     = null
  description = "Disk of each machine; the image for accelerators needs 50."

  validation {
    condition     = coalesce(var.disk_gb, 50) >= 30
    error_message = "A machine needs 30 GB at least."
  }
}

variable "environment" {
  type        = map(string)
  default     = {}
  description = "Further fields of Dataflow's FlexTemplateRuntimeEnvironment that are text: machineType, network, subnetwork, ipConfiguration, …"
}

variable "prefix" {
  type        = string
  default     = "nightly"
  description = "Directory of the bucket that nights are in, one a date."

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9/_-]*[A-Za-z0-9]$", var.prefix))
    error_message = "Give a directory without a slash in front or at its end."
  }
}

variable "keep_days" {
  type        = number
  default     = 90
  description = "After how many days a night's results are deleted."

  validation {
    condition     = var.keep_days >= 2
    error_message = "A night is compared with the last one, and so must be kept for two days at least."
  }
}

variable "alert_email" {
  type        = string
  default     = null
  description = "Who is told of a night that failed or found drift; nobody, where it is left out."
}
