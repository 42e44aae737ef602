"""Batches of features written as files in a thread, and committed as a feature set.

Beam groups only small things: what each written file holds, and a hash of each id.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.core.origins import Origins
from transforms.extraction.feature_files.commit import assemble_manifest
from transforms.extraction.feature_files.feature_batch import FeatureBatch
from transforms.extraction.feature_files.part import DEFAULT_LIMITS, FileLimits, Part
from transforms.extraction.feature_files.resume import record_finished
from transforms.extraction.feature_files.steps import accelerated, windowed
from transforms.extraction.feature_files.unique_ids import check_repeats, repeated_hashes
from transforms.extraction.feature_files.written_part import IDS, PARTS, WrittenPart
from transforms.runtime.threads import Threads
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest
from transforms.storage.records import feature_record

# Batches that wait for the writing thread: with two it does not run dry while the model computes.
_BATCHES_WAITING = 2


class PartWriter:
    """Writes batches of features as parts, file by file.

    A file of examples whose batches all came here is recorded as finished, for an attempt that
    resumes this one.
    """

    def __init__(
        self,
        directory: str,
        attempt: str,
        feature_dtype: str,
        limits: FileLimits = DEFAULT_LIMITS,
    ) -> None:
        """Begins without any part.

        Args:
            directory: the feature set's directory.
            attempt: fingerprint under which finished files are recorded.
            feature_dtype: dtype in which loss gradients and activations are stored.
            limits: how large files become.
        """
        self._directory = directory
        self._attempt = attempt
        self._feature_dtype = feature_dtype
        self._limits = limits
        # The part that is being written, by index of the input file.
        self._open: dict[int, Part] = {}
        # Parts of the input files whose first batch came here. Of other files some batches may have
        # gone to another writer.
        self._written: dict[int, list[WrittenPart]] = {}

    def add(self, batch: FeatureBatch) -> list[Any]:
        """Writes a batch; returns the outputs of parts that became full or whose file has ended.

        Outputs are a WrittenPart and its tagged `id_buckets`.
        """
        outputs: list[Any] = []
        index = batch.file.index
        if batch.first:
            self._written[index] = []
        part = self._open.get(index) or self._begin(batch)
        part.rejects.extend(batch.rejects)
        source, offsets = batch.file.path, batch.offsets
        example_ids = batch.features.example_ids.tolist()
        payloads = self._encode(batch)
        while payloads:
            fit = part.count_fitting(payloads, source, offsets)
            part.add(payloads[:fit], source, offsets[:fit], example_ids[:fit])
            payloads, offsets, example_ids = payloads[fit:], offsets[fit:], example_ids[fit:]
            if payloads:
                outputs += self._finish(part)
                part = self._begin(batch)
        if batch.last or part.is_full:
            del self._open[index]
            outputs += self._finish(part)
        if batch.last and index in self._written:
            record_finished(self._directory, self._attempt, batch.file, self._written.pop(index))
        return outputs

    def end(self) -> list[Any]:
        """Finishes all open parts and returns their outputs, as `add`.

        Parts are open here only where a runner splits the chain of steps within a file.
        """
        outputs = [output for part in self._open.values() for output in self._finish(part)]
        self._open.clear()
        return outputs

    def discard(self) -> None:
        """Deletes the parts that are not finished."""
        for part in self._open.values():
            part.discard()
        self._open.clear()

    def _begin(self, batch: FeatureBatch) -> Part:
        part = self._open[batch.file.index] = Part(batch.file, self._directory, self._limits)
        return part

    def _encode(self, batch: FeatureBatch) -> list[bytes]:
        files = np.zeros(len(batch.offsets), np.int32)
        origins = Origins((batch.file.path,), files, batch.offsets, batch.digests)
        return feature_record.encode_columns(
            batch.features, origins, batch.kept, self._feature_dtype
        )

    def _finish(self, part: Part) -> list[Any]:
        written = part.finish()
        if written is None:
            return []
        if part.file.index in self._written:
            self._written[part.file.index].append(written)
        return [written, *part.id_buckets(written)]


class _WriteDoFn(beam.DoFn):
    """Writes in a thread, while the model computes: FeatureBatch → WrittenPart, and `id_buckets`
    under the tag `IDS`.
    """

    def __init__(
        self, directory: str, attempt: str, feature_dtype: str, limits: FileLimits
    ) -> None:
        self._writer = directory, attempt, feature_dtype, limits
        self._thread: Threads | None = None

    def start_bundle(self) -> None:
        self.teardown()
        # One thread, so that batches are written in order.
        self._thread = Threads(1, _BATCHES_WAITING, "write")
        self._parts = PartWriter(*self._writer)

    def process(self, batch: FeatureBatch) -> Iterator[Any]:
        assert self._thread is not None
        for outputs in self._thread.call(self._parts.add, batch):
            yield from outputs

    def finish_bundle(self) -> Iterator[Any]:
        assert self._thread is not None
        for outputs in chain(self._thread.call(self._parts.end), self._thread.rest()):
            yield from map(windowed, outputs)
        self.teardown()

    def teardown(self) -> None:
        # Closing writes the batches that came before a run died, so that the next run resumes after
        # them.
        if self._thread is not None:
            self._thread.close()
            self._thread = None
            self._parts.discard()


@dataclasses.dataclass
class WriteFeatures(beam.PTransform):
    """Writes features as TFRecord files and commits them, with parts that exist already, by a
    manifest.

    Takes `batches`: FeatureBatch, `parts`: WrittenPart, and `ids`: the parts' `id_buckets`. Yields
    one FeatureManifest.

    Attributes:
        directory: the feature set's directory.
        draft: the manifest without its files and counts.
        max_rejected_fraction: the largest fraction of examples that may be rejected.
        overwrite: whether a set that is committed in the directory is replaced; it stays valid
            until this one is committed.
        attempt: fingerprint of all that decides which examples are extracted, and how; a later
            attempt with the same fingerprint resumes this one.
        accelerator: Beam's resource hint for the step that is fused with the extraction, or None;
            grouping and committing need none.
        limits: how large files become.
    """

    directory: str
    draft: FeatureManifest
    max_rejected_fraction: float
    overwrite: bool
    attempt: str
    accelerator: str | None = None
    limits: FileLimits = DEFAULT_LIMITS

    def _commit(
        self, _: None, parts: list[WrittenPart], repeats: list[list[tuple[str, int]]]
    ) -> FeatureManifest:
        manifest = assemble_manifest(self.draft, parts, self.max_rejected_fraction, self.directory)
        check_repeats(self.directory, parts, repeats)
        manifest = manifests.commit(self.directory, manifest, self.overwrite)
        counts = manifest.counts
        logging.getLogger(__name__).info(
            "%s: %d examples, %d rejected", self.directory, counts["examples"], counts["rejected"]
        )
        return manifest

    def expand(self, collections: Mapping[str, beam.PCollection]) -> beam.PCollection:
        batches = collections["batches"]
        write = _WriteDoFn(self.directory, self.attempt, self.draft.feature_dtype, self.limits)
        written = batches | "WriteFiles" >> accelerated(
            beam.ParDo(write), self.accelerator
        ).with_outputs(IDS, main=PARTS)  # WrittenPart, (bucket, (file name, rows, hashes))
        parts = (collections[PARTS], written[PARTS]) | "JoinParts" >> beam.Flatten()  # WrittenPart
        repeats = (
            (collections[IDS], written[IDS])
            | "JoinIdHashes" >> beam.Flatten()  # (bucket, (file name, rows, hashes))
            | "GroupIdHashes" >> beam.GroupByKey()  # (bucket, [(file name, rows, hashes)])
            | "FindRepeatedIds"
            >> beam.FlatMapTuple(lambda _, bucket: repeated_hashes(bucket))  # [(file name, row)]
        )
        return (
            batches.pipeline
            | "StartCommit" >> beam.Create([None])  # None
            | "CommitFeatures"
            >> beam.Map(
                self._commit, beam.pvalue.AsList(parts), beam.pvalue.AsList(repeats)
            )  # FeatureManifest
        )
