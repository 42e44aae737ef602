"""Unchanged examples of a run found in a base, and their feature records copied.

Examples are matched by id and content digest, wherever they are in either set. Both sets are read
once, and Beam groups 16 bytes and an index of each record. Features are copied from file to file
and never shuffled. Files with other examples go on, with the offsets of the unchanged ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np

from transforms.examples.format import ExampleFormat, InputFile
from transforms.examples.read import read_examples
from transforms.extraction.feature_files.written_part import IDS, PARTS
from transforms.extraction.reuse.base import Base, index_base
from transforms.extraction.reuse.copying import CopyDoFn
from transforms.extraction.reuse.matching import bucketed, example_key, match_examples
from transforms.runtime import counters

# Examples that are parsed at once for their digests: small against memory, many against the cost
# of a call.
_BATCH_EXAMPLES = 1024
# Examples of the base per bucket: 50,000 keys with their indices are a few megabytes as Python
# objects, and buckets of a large set are many more than workers.
RECORDS_PER_BUCKET = 50_000
# Tag of the offsets of unchanged examples.
_UNCHANGED = "known"


class _DigestDoFn(beam.DoFn):
    """Yields keys of a file's examples: (bucket, (file, offsets, keys)); and, under the tag
    `_UNCHANGED`, (index, (file, number of records)).
    """

    def __init__(self, form: ExampleFormat, allow_truncated: bool, buckets: int) -> None:
        # Neither inputs nor labels are needed; an example without them is rejected when it is
        # extracted.
        self._form = dataclasses.replace(form, inputs=(), labelled=False, keep_keys=())
        self._allow_truncated = allow_truncated
        self._buckets = buckets

    def process(self, file: InputFile) -> Iterator[Any]:
        keys: list[bytes] = []
        offsets: list[np.ndarray] = []
        count = 0
        for batch in read_examples(file, self._form, _BATCH_EXAMPLES, self._allow_truncated):
            digests = batch.digests.view("V16").ravel().tolist()
            keys += [
                example_key(*pair) for pair in zip(batch.example_ids.tolist(), digests, strict=True)
            ]
            offsets.append(batch.offsets)
            count += len(batch) + len(batch.rejects)
            counters.add("example-bytes-compared", batch.bytes_read)
            counters.add("examples-compared", len(batch) + len(batch.rejects))
        all_offsets = np.concatenate(offsets)
        for bucket, indices, joined in bucketed(keys, self._buckets):
            yield bucket, (file, all_offsets[indices], joined)
        yield beam.pvalue.TaggedOutput(_UNCHANGED, (file.index, (file, count)))


def leave_unchanged(element: tuple[int, Mapping[str, Iterable[Any]]]) -> Iterator[InputFile]:
    """Yields a file with the offsets of its unchanged examples, unless all are unchanged."""
    _, grouped = element
    ((file, count),) = grouped["files"]
    known = np.unique(np.concatenate([np.empty(0, np.int64), *grouped[_UNCHANGED]]))
    if len(known) < count:
        yield dataclasses.replace(file, known=known)
    else:
        counters.add("example-bytes-read", file.size)


@dataclasses.dataclass
class FindUnchanged(beam.PTransform):
    """Copies the feature records of unchanged examples.

    Takes InputFile; gives `left`: InputFile, `parts`: WrittenPart, `ids`: their `id_buckets`.

    Attributes:
        base: the feature set to copy from.
        form: how ids are read.
        allow_truncated: whether a file with an unreadable tail is used as far as it goes.
        directory: the directory of the new feature set.
        records_per_bucket: examples of the base that are matched at once, about.
    """

    base: Base
    form: ExampleFormat
    allow_truncated: bool
    directory: str
    records_per_bucket: int = RECORDS_PER_BUCKET

    def expand(self, input_files: beam.PCollection) -> Mapping[str, beam.PCollection]:
        buckets = 1 + self.base.examples // self.records_per_bucket
        digest = beam.ParDo(_DigestDoFn(self.form, self.allow_truncated, buckets))
        examples = input_files | "DigestExamples" >> digest.with_outputs(
            _UNCHANGED, main="keys"
        )  # (bucket, (InputFile, offsets, keys))
        base = self._index_base(input_files.pipeline, buckets)
        matches = (
            (examples["keys"], base)
            | "JoinKeys" >> beam.Flatten()  # (bucket, (StoredFile or InputFile, indices, keys))
            | "GroupKeys"
            >> beam.GroupByKey()  # (bucket, [(StoredFile or InputFile, indices, keys)])
            | "MatchExamples"
            >> beam.FlatMapTuple(lambda _, bucket: match_examples(bucket))  # Match
        )
        copied = (
            matches
            | "KeyByBaseFile" >> beam.Map(lambda match: (match.stored.name, match))  # (name, Match)
            | "GroupByBaseFile" >> beam.GroupByKey()  # (name, [Match])
            | "CopyRecords"
            >> beam.ParDo(CopyDoFn(self.base.directory, self.directory)).with_outputs(
                IDS, main=PARTS
            )  # WrittenPart, (bucket, (file name, rows, hashes))
        )
        unchanged = matches | "KeyByFile" >> beam.Map(
            lambda match: (match.file.index, match.offsets)
        )  # (index, offsets)
        left = (
            {"files": examples[_UNCHANGED], _UNCHANGED: unchanged}
            | "GroupByFile"
            >> beam.CoGroupByKey()  # (index, {files: [(InputFile, records)], known: [offsets]})
            | "LeaveUnchanged" >> beam.FlatMap(leave_unchanged)  # InputFile
        )
        return {"left": left, PARTS: copied[PARTS], IDS: copied[IDS]}

    def _index_base(self, pipeline: beam.Pipeline, buckets: int) -> beam.PCollection:
        return (
            pipeline
            | "NameBase" >> beam.Create([self.base], reshuffle=False)  # Base
            | "ListBaseFiles" >> beam.FlatMap(Base.files)  # StoredFile
            | "SpreadBaseFiles" >> beam.Reshuffle()  # StoredFile
            | "IndexBase"
            >> beam.FlatMap(index_base, self.base, buckets)  # (bucket, (StoredFile, rows, keys))
        )
