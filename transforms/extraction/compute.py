"""Stage 1, whole: from files of examples to a committed feature set.

Reading, extracting and writing are one fused chain of steps that hand on batches, so no example and
no feature is ever shuffled. Only small things are grouped: what each written file holds, and a hash
of each id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.read import ReadExamples
from transforms.extraction.extract import RunCheckpoints
from transforms.extraction.extractor import ExtractionPlan
from transforms.extraction.feature_batch import IDS, PARTS
from transforms.extraction.feature_files import WriteFeatures, accelerated
from transforms.extraction.model import Model
from transforms.extraction.resume import FindFinished
from transforms.extraction.reuse import Base, FindUnchanged


@dataclasses.dataclass
class ComputeFeatureSet(beam.PTransform):
    """Stage 1, whole: files of examples in, a committed feature set out; yields its
    FeatureManifest.

    Reading, extracting and writing carry `write.accelerator`, the resource hint, so that all of
    them stay one stage.

    Attributes:
        input_files: the files, in the set's order.
        form: how their records are read.
        model: the checkpoints.
        plan: how features are extracted.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
        write: where the set goes.
        base: a set whose records are copied for examples that did not change, or None.
    """

    input_files: Sequence[InputFile]
    form: ExampleFormat
    model: Model
    plan: ExtractionPlan
    allow_truncated: bool
    write: WriteFeatures
    base: Base | None = None

    def expand(self, pipeline: Any) -> beam.PCollection:
        read = ReadExamples(self.form, self.plan.batch_size, self.allow_truncated)
        extract = RunCheckpoints(self.model, self.plan)
        changed = (
            pipeline
            | "ListFiles" >> beam.Create(list(self.input_files), reshuffle=False)  # InputFile
            | "SpreadFiles" >> beam.Reshuffle()  # InputFile
        )
        written = []
        if self.base:
            unchanged = changed | "FindUnchanged" >> FindUnchanged(
                self.base, self.form, self.allow_truncated, self.write.directory
            )
            changed = unchanged["left"]  # InputFile
            written.append(unchanged)
        found = changed | "FindFinished" >> FindFinished(self.write.directory, self.write.attempt)
        written.append(found)
        batches = (
            found["left"]
            | "ReadExamples" >> accelerated(read, self.write.accelerator)  # ExampleBatch
            | "ExtractFeatures" >> accelerated(extract, self.write.accelerator)  # FeatureBatch
        )
        # WrittenPart, (bucket, (file name, rows, hashes))
        parts, ids = (
            tuple(one[tag] for one in written) | f"Join{tag.title()}" >> beam.Flatten()
            for tag in (PARTS, IDS)
        )
        return {
            "batches": batches,
            PARTS: parts,
            IDS: ids,
        } | "WriteFeatures" >> self.write  # FeatureManifest
