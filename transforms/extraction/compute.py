"""Stage 1 as one graph: files of examples in, a committed feature set out.

Reading, extracting and writing are one fused chain of steps that hand on batches, so Beam shuffles
neither examples nor features. It groups only small things: what each written file holds, and a hash
of each id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam

from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.read import ReadExamples
from transforms.extraction.extract import RunCheckpoints
from transforms.extraction.feature_files.resume import FindFinished
from transforms.extraction.feature_files.steps import accelerated
from transforms.extraction.feature_files.write import WriteFeatures
from transforms.extraction.feature_files.written_part import IDS, PARTS
from transforms.extraction.reuse.base import Base
from transforms.extraction.reuse.unchanged import FindUnchanged
from transforms.extraction.tuning import DEFAULT_TUNING, ExtractionTuning
from transforms.extraction.worker.extractor import ExtractionPlan
from transforms.extraction.worker.model import Model


@dataclasses.dataclass
class ComputeFeatureSet(beam.PTransform):
    """Computes the features of files of examples and commits them; yields one FeatureManifest.

    Reading, extracting and writing all carry the resource hint `write.accelerator`, so that they
    stay one stage.

    Attributes:
        input_files: the files, in the set's order.
        form: how their records are read.
        model: the checkpoints.
        plan: how features are extracted.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
        write: where the set goes; its `limits` are the tuning's.
        base: a feature set whose records are copied for unchanged examples, or None.
        tuning: sizes and thresholds.
    """

    input_files: Sequence[InputFile]
    form: ExampleFormat
    model: Model
    plan: ExtractionPlan
    allow_truncated: bool
    write: WriteFeatures
    base: Base | None = None
    tuning: ExtractionTuning = DEFAULT_TUNING

    def expand(self, pipeline: Any) -> beam.PCollection:
        read = ReadExamples(self.form, self.plan.batch_size, self.allow_truncated)
        extract = RunCheckpoints(self.model, self.plan, self.tuning)
        left = (
            pipeline
            | "ListFiles" >> beam.Create(list(self.input_files), reshuffle=False)  # InputFile
            | "SpreadFiles" >> beam.Reshuffle()  # InputFile
        )
        existing = []
        if self.base:
            unchanged = left | "FindUnchanged" >> self._find_unchanged(self.base)
            left = unchanged["left"]  # InputFile
            existing.append(unchanged)
        finished = left | "FindFinished" >> FindFinished(self.write.directory, self.write.attempt)
        existing.append(finished)
        batches = (
            finished["left"]
            | "ReadExamples" >> accelerated(read, self.write.accelerator)  # ExampleBatch
            | "ExtractFeatures" >> accelerated(extract, self.write.accelerator)  # FeatureBatch
        )
        return {
            "batches": batches,
            PARTS: _join(existing, PARTS),  # WrittenPart
            IDS: _join(existing, IDS),  # (bucket, (file name, rows, hashes))
        } | "WriteFeatures" >> self.write  # FeatureManifest

    def _find_unchanged(self, base: Base) -> FindUnchanged:
        return FindUnchanged(
            base,
            self.form,
            self.allow_truncated,
            self.write.directory,
            self.tuning.records_per_bucket,
        )


def _join(existing: Sequence[Mapping[str, beam.PCollection]], tag: str) -> beam.PCollection:
    return [outputs[tag] for outputs in existing] | f"Join{tag.title()}" >> beam.Flatten()
