"""Beam's flags for a Dataflow job, checked before anything is loaded."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from pipeline.flags.declarations.kinds import PROJECT

RUNNER = "DataflowRunner"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*[a-z0-9]")
_REGION = re.compile(r"[a-z]+-[a-z]+\d+")
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def mistake(flags: Sequence[str]) -> str | None:
    """Returns, in one line, what keeps Beam's flags from being a Dataflow job; None where nothing
    does, or another runner is named.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("runner", "project", "region", "temp_location", "staging_location", "job_name"):
        parser.add_argument(f"--{name}")
    args, _ = parser.parse_known_args([flag for flag in flags if flag not in ("-h", "--help")])
    if (args.runner or "").rsplit(".", 1)[-1].lower() not in (RUNNER.lower(), "dataflow"):
        return None
    return _missing(args) or _malformed(args)


def _missing(args: argparse.Namespace) -> str | None:
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
    return f"--runner={args.runner} needs {', '.join(missing)}" if missing else None


def _malformed(args: argparse.Namespace) -> str | None:
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
    """Returns what is wrong with a directory of a bucket, after Cloud Storage's rules of naming."""
    match = re.fullmatch(r"gs://([^/]*)(/[^\r\n]*)?", url)
    if not match:
        return "expected gs://BUCKET/DIRECTORY"
    bucket, path = match.groups()
    rule = _broken_rule(bucket)
    if rule:
        return f"no bucket can be called {bucket!r}: {rule}"
    if path is None:
        return f"expected a directory in the bucket, such as {url}/tmp"
    return None


def _broken_rule(bucket: str) -> str | None:
    if not _BUCKET.fullmatch(bucket):
        return (
            "names are of small letters, digits, '-', '_' and '.', with a letter or digit at both "
            "ends"
        )
    if not 3 <= len(bucket) <= (222 if "." in bucket else 63) or any(
        len(part) > 63 for part in bucket.split(".")
    ):
        return "names have 3 to 63 characters, with dots up to 222 of which at most 63 between two"
    if (
        ".." in bucket
        or re.fullmatch(r"\d+(\.\d+){3}", bucket)
        or bucket.startswith("goog")
        or "google" in bucket
    ):
        return "two dots in a row, IP addresses, 'goog' in front and 'google' anywhere are reserved"
    return None
