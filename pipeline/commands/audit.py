"""`tracin audit`: which labels of a training set are likely wrong, from its feature set, which is
extracted first where it is not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import sys
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline.commands.features import extraction
from pipeline.flags import parser
from pipeline.preparation import configs, output_table
from pipeline.running import progress, runner
from pipeline.terminal import report
from transforms.audit import judge
from transforms.audit.drift import Thresholds
from transforms.audit.judge import AuditLabels
from transforms.audit.write import (
    SuspectsWanted,
    WriteAudit,
    read_summary,
    table_rows,
    told_crossed,
)
from transforms.core.errors import InputError
from transforms.extraction.load_model import LoadedModel, load_model
from transforms.extraction.prepare import ExtractFeatures
from transforms.reports.class_names import read_class_names
from transforms.reports.previews import preview_format, why_no_pictures
from transforms.storage import feature_manifest, filesystems, manifests
from transforms.storage.bigquery import check_credentials
from transforms.storage.feature_manifest import FeatureManifest, usable_rates
from transforms.storage.manifests import Manifest
from transforms.storage.read_feature_set import ReadFeatureSet


def run(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return runner.exit_with("audit", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    args, flags = parser.parse("audit", argv)
    started = time.monotonic()
    beam_options = runner.beam_options(flags)
    if args.output_table:
        check_credentials()
    wanted: dict[str, ExtractFeatures] = {}
    if args.features:
        found = manifests.read(args.features, FeatureManifest, "features")
        judge.check_not_empty(found, args.features)
        rates = usable_rates(found, args.learning_rates)
    else:
        model = load_model(configs.model_config(args), rates_needed=True)
        wanted["features"] = _prepare(args, model, "examples", "features")
        found = wanted["features"].draft
        rates = usable_rates(found, None)
        if args.test_examples:
            # What slices are made by is kept of the test examples, whether or not training examples
            # have it.
            wanted["test_features"] = _prepare(
                args, model, "test_examples", "test_features", args.slice_keys
            )
    judge.check_labels(found, args.features or args.examples)
    previous = manifests.read_kind(args.previous, "previous", "audit") if args.previous else None
    if previous and posixpath.normpath(args.previous) == posixpath.normpath(args.output):
        raise InputError(
            f"--previous={args.previous!r} is where the new audit would go: give it a directory of "
            "its own"
        )
    class_names = read_class_names(args.class_names, found)
    test = None
    if args.test_features:
        test = manifests.read(args.test_features, FeatureManifest, "test_features")
    elif args.test_examples:
        test = wanted["test_features"].draft
    if test:
        name = args.test_features or args.test_examples
        judge.check_labels(test, name)
        feature_manifest.check_same_model(test, found, name, args.features or args.examples)
        if args.test_features and not test.examples:
            raise InputError(
                f"--test_features={args.test_features!r} holds no example: there is nothing to "
                "influence"
            )
        _check_kept(args.slice_keys, test, name)
    thresholds = Thresholds(args.max_suspect_fraction, args.max_appeared_suspects, args.max_shift)
    settings: dict[str, Any] = {
        "features": found.fingerprint,
        "learning_rates": list(rates),
        "min_suspicion": args.min_suspicion,
        "max_suspects_per_class": args.max_suspects_per_class,
        "min_similarity": args.min_similarity,
        "previous": previous and previous.fingerprint,
        "class_names": class_names,
        "test_features": test and test.fingerprint,
        **({"slice_keys": list(args.slice_keys)} if args.slice_keys else {}),
        "thresholds": dataclasses.asdict(thresholds),
    }
    draft = Manifest("audit", manifests.fingerprint(settings), settings, (), {})
    suspects = SuspectsWanted(args.min_suspicion, args.max_suspects_per_class)
    table = output_table.wanted(args, beam_options, table_rows(suspects, bool(test)))
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
            "sets": _set(
                pipeline, "Train", wanted.get("features"), "features", args.features, found
            )
        }
        if test:
            sets["tests"] = _set(
                pipeline,
                "Test",
                wanted.get("test_features"),
                "test_features",
                args.test_features,
                test,
            )
        audit = AuditLabels(rates, args.output, args.min_similarity, args.slice_keys)
        (
            sets
            | "AuditLabels" >> audit  # judged examples, duplicates, and what they come from
            | "WriteAudit"
            >> WriteAudit(
                args.output,
                draft,
                judge.classes(found),
                suspects,
                args.overwrite,
                preview_format(found),
                class_names,
                (args.previous, previous) if previous else None,
                thresholds,
                args.fail_on_drift,
                args.min_similarity,
                why_no_pictures(found),
                table,
            )  # Manifest
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


def _check_kept(keys: Sequence[str], test: FeatureManifest, name: str) -> None:
    kept = test.settings["keep_keys"]
    missing = [key for key in keys if key not in kept]
    if missing:
        raise InputError(
            f"--slice_keys names {missing[0]!r}, which the records of {name} do not keep (they "
            f"keep {', '.join(kept) or 'nothing'}): "
            f"extract them with --keep_keys={','.join([*kept, *missing])}"
        )


def _fail_if_crossed(args: argparse.Namespace) -> None:
    summary = read_summary(args.output, runner.read_back(args.output, Manifest))
    if args.fail_on_drift and summary["crossed"]:
        raise runner.Crossed(told_crossed(args.output, summary))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
