"""`tracin audit`: which labels of a training set are likely wrong, from its feature set, which is
extracted first where it is not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

import apache_beam as beam

from pipeline.commands.features import extraction
from pipeline.flags import parser
from pipeline.preparation import configs, output_table
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.audit.config import (
    AuditConfig,
    check_not_empty,
    check_test_not_empty,
    plan_audit,
)
from transforms.audit.judge import AuditLabels
from transforms.audit.rows import table_rows
from transforms.audit.summary import describe_crossed, read_summary
from transforms.audit.write import WriteAudit
from transforms.extraction.load_model import LoadedModel, load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.storage import filesystems, manifests
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.feature_set import FeatureSet
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet
from transforms.storage.tables.bigquery_client import check_credentials


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("audit", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("audit", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    if args.output_table:
        check_credentials()
    config = _config(args)
    wanted: dict[str, ExtractFeatures] = {}
    if args.features:
        train = FeatureSet(
            args.features, manifests.read(args.features, FeatureManifest, "features")
        )
        check_not_empty(train)
    else:
        model = load_model(configs.model_config(args), rates_needed=True)
        wanted["features"] = _prepare(args, model, "examples", "features")
        train = FeatureSet(args.examples, wanted["features"].draft)
        if args.test_examples:
            # What slices are made by is kept of the test examples, whether or not training examples
            # have it.
            wanted["test_features"] = _prepare(
                args, model, "test_examples", "test_features", args.slice_keys
            )
    test = None
    if args.test_features:
        test = FeatureSet(
            args.test_features,
            manifests.read(args.test_features, FeatureManifest, "test_features"),
        )
        check_test_not_empty(test)
    elif args.test_examples:
        test = FeatureSet(args.test_examples, wanted["test_features"].draft)
    plan = plan_audit(config, args.output, train, test)
    # The manifest of a set that is there already may have other rates.
    config = dataclasses.replace(config, learning_rates=plan.learning_rates)
    draft = plan.draft
    table = output_table.wanted(
        args, beam_options, table_rows(config.min_suspicion, test is not None)
    )
    if manifests.is_complete(args.output, draft, args.overwrite):
        output_table.finish(args.output, table, beam_options)
        _fail_if_crossed(args)
        return
    output_table.check(table, beam_options)
    filesystems.check_writable(args.output)
    if wanted:
        print(report.checkpoints(model))
        for name, one in wanted.items():
            if one.complete:
                print(f"{name}: already complete, used as they are")

    def build(pipeline: beam.Pipeline) -> None:
        sets = {
            "train": _set(
                pipeline,
                "Train",
                wanted.get("features"),
                "features",
                args.features,
                train.manifest,
            )
        }
        if test:
            sets["test"] = _set(
                pipeline,
                "Test",
                wanted.get("test_features"),
                "test_features",
                args.test_features,
                test.manifest,
            )
        (
            sets
            | "AuditLabels" >> AuditLabels(config, args.output)  # weighed labels, duplicates
            | "WriteAudit" >> WriteAudit(config, args.output, table)  # Manifest
        )

    missing = [one for one in wanted.values() if not one.complete]
    stages = [
        *(extraction(missing) if missing else []),
        progress.Stage(
            "Sum activations", "examples-summed", "examples-planned", "examples-summed", "examples"
        ),
        progress.Stage(
            "Judge labels", "examples-audited", "examples-planned", "examples-audited", "examples"
        ),
    ]
    try:
        counts = runner.run_graph(build, beam_options, stages)
    except runner.RunFailed:
        # The last step fails when everything is there.
        complete = args.fail_on_drift and manifests.is_complete(args.output, draft, overwrite=False)
        if complete and output_table.holds(table, beam_options):
            print(
                report.audit(
                    args.output, read_summary(args.output, runner.read_back(args.output, Manifest))
                )
            )
            _fail_if_crossed(args)
        raise
    if counts is None:
        print("the graph is built; nothing has run")
        return
    read = 0
    for name, one in wanted.items():
        written = runner.read_back(one.output, FeatureManifest)
        print(report.features(one.output, written, name))
        read += 0 if one.complete else written.counts["examples"] + written.counts["rejected"]
    print(
        report.audit(
            args.output, read_summary(args.output, runner.read_back(args.output, Manifest))
        )
    )
    output_table.tell(table)
    print(report.done(started, read, counts))


def _config(args: argparse.Namespace) -> AuditConfig:
    return AuditConfig(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(AuditConfig)}
    )


def _prepare(
    args: argparse.Namespace,
    model: LoadedModel,
    field: str,
    name: str,
    slice_keys: tuple[str, ...] = (),
) -> ExtractFeatures:
    """The feature set that goes to `name` below the output."""
    return configs.extraction(
        args,
        model,
        filesystems.join(args.output, name),
        field,
        base=args.base and filesystems.join(args.base, name),
        slice_keys=slice_keys,
    )


def _set(
    pipeline: beam.Pipeline,
    name: str,
    wanted: ExtractFeatures | None,
    flag: str,
    directory: str,
    found: FeatureManifest,
) -> beam.PCollection:
    """A feature set that is extracted, or was named: FeatureSet (one)."""
    if wanted:
        return pipeline | f"Extract{name}Features" >> wanted
    return pipeline | f"Read{name}Features" >> ReadFeatureSet(directory, flag, found.fingerprint)


def _fail_if_crossed(args: argparse.Namespace) -> None:
    summary = read_summary(args.output, runner.read_back(args.output, Manifest))
    if args.fail_on_drift and summary["crossed"]:
        raise runner.Crossed(describe_crossed(args.output, summary))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
