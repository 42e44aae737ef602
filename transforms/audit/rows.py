"""The audited examples of a feature file: as arrays, as a file until the noise is known, and as
rows of the result.

No label can be judged before the evidence of all is known. Until then the evidence waits in files
of the audit's directory, and only their names pass between steps, so memory stays bounded. Each
attempt gives its files names of their own. Committing the audit deletes them.

Rows, a file `examples-*.parquet` for 16 feature files, in the feature set's order:

| field | content |
|---|---|
| `example_id`, `content_digest`, `label` | of the example; the digest in hexadecimal digits |
| `source`, `offset` | the file that holds the example, and the number of its record |
| `prediction`, `probability` | of the last checkpoint |
| `label_probability` | of the label, the mean over the checkpoints |
| `self_influence` | the influence of the example on itself |
| `suspicion` | the probability that the label is wrong |
| `suggested_label`, `suggested_probability` | the likeliest class, and its probability |
| `test_influence` | with a test set: the mean influence on its examples; helpful above 0 |
| `test_influence_by_label` | the mean influence on the test examples of each label, or null |
| `test_influence_by_slice` | the mean influence on each slice of the summary |

Influence by label is absent where its sums would be too large; see `slices`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import uuid

import numpy as np
import pyarrow as pa

from transforms.audit.slices import Slices
from transforms.audit.suspicion import Evidence, Judgement
from transforms.core.origins import Origins
from transforms.duplicates.signatures import record_numbers
from transforms.storage import filesystems
from transforms.storage.filesystems import StoredFile
from transforms.storage.tables.bigquery_rows import Computed, TableRows


@dataclasses.dataclass(frozen=True, eq=False)
class AuditedExamples:
    """The examples of a feature file, in order, without the evidence on their labels.

    Attributes:
        file: index of the file in the set's manifest.
        example_ids: [n] byte strings.
        origins: files, record numbers and content digests of the examples.
        labels, predictions: [n] int64, class indices.
        probabilities: [n] float32, of the last checkpoint's prediction.
        label_probabilities: [n] float64, of the label, the mean over the checkpoints.
        self_influence: [n] float64.
        test_influence: [n, S] float64, the mean influence on the test examples of each slice, or
            None without a test set.
        test_slices: the slices of the test set, or None.
    """

    file: int
    example_ids: np.ndarray
    origins: Origins
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray
    self_influence: np.ndarray
    test_influence: np.ndarray | None = None
    test_slices: Slices | None = None


_ARRAYS = (
    "example_ids",
    "labels",
    "predictions",
    "probabilities",
    "label_probabilities",
    "self_influence",
)
_ORIGIN_ARRAYS = ("source", "offsets", "digests")
_EVIDENCE_ARRAYS = tuple(field.name for field in dataclasses.fields(Evidence))


@dataclasses.dataclass(frozen=True)
class PendingExamples:
    """A stored file of audited examples and the evidence on their labels.

    Attributes:
        file: index of their feature file in the set's manifest.
        stored: name, size and checksum of the file in the audit's directory.
    """

    file: int
    stored: StoredFile


def write_pending(directory: str, examples: AuditedExamples, evidence: Evidence) -> PendingExamples:
    """Stores audited examples and the evidence on their labels in a new file of `directory`."""
    slices = examples.test_slices
    header = {
        "file": examples.file,
        "sources": examples.origins.sources,
        "slices": slices
        and {"labels": slices.labels, "named": slices.named, "left_out": slices.left_out},
    }
    arrays = {name: getattr(examples, name) for name in _ARRAYS}
    arrays |= {name: getattr(examples.origins, name) for name in _ORIGIN_ARRAYS}
    arrays |= {name: getattr(evidence, name) for name in _EVIDENCE_ARRAYS}
    if slices is not None and examples.test_influence is not None:
        arrays |= {"test_influence": examples.test_influence, "slice_counts": slices.counts}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        header=np.frombuffer(json.dumps(header).encode(), np.uint8),
        **arrays,
    )
    name = f"weighed-{examples.file:06d}-{uuid.uuid4().hex[:8]}.npz"
    stored = filesystems.write(directory, name, buffer.getvalue(), len(examples.labels))
    return PendingExamples(examples.file, stored)


def read_pending(directory: str, pending: PendingExamples) -> tuple[AuditedExamples, Evidence]:
    """Reads and verifies a file that `write_pending` stored.

    Raises:
        InputError: the file is gone or damaged.
    """
    with np.load(
        io.BytesIO(filesystems.read_verified(directory, pending.stored)), allow_pickle=False
    ) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes())
    slices = header["slices"]
    if slices:
        named = tuple((key, value) for key, value in slices["named"])
        slices = Slices(slices["labels"], named, arrays["slice_counts"], tuple(slices["left_out"]))
    examples = AuditedExamples(
        file=header["file"],
        origins=Origins(tuple(header["sources"]), *(arrays[name] for name in _ORIGIN_ARRAYS)),
        **{name: arrays[name] for name in _ARRAYS},
        test_influence=arrays.get("test_influence"),
        test_slices=slices,
    )
    return examples, Evidence(**{name: arrays[name] for name in _EVIDENCE_ARRAYS})


def to_table(examples: AuditedExamples, judgement: Judgement) -> pa.Table:
    """Returns the rows of a feature file, and a column `record` that the result leaves out: the
    record numbers of `duplicates.signatures`.
    """
    origins = examples.origins
    table = pa.table(
        {
            "example_id": pa.array(examples.example_ids.tolist(), pa.binary()).cast(pa.string()),
            "content_digest": pa.array(
                [digest.tobytes().hex() for digest in origins.digests], pa.string()
            ),
            "source": pa.DictionaryArray.from_arrays(
                origins.source, pa.array(origins.sources, pa.string())
            ).cast(pa.string()),
            "offset": pa.array(origins.offsets),
            "label": pa.array(examples.labels),
            "prediction": pa.array(examples.predictions),
            "probability": pa.array(examples.probabilities.astype(np.float64)),
            "label_probability": pa.array(examples.label_probabilities),
            "self_influence": pa.array(examples.self_influence),
            "suspicion": pa.array(judgement.suspicion),
            "suggested_label": pa.array(judgement.suggested_labels),
            "suggested_probability": pa.array(judgement.suggested_probabilities),
            "record": pa.array(record_numbers(examples.file, len(examples.labels))),
        }
    )
    if examples.test_influence is None or examples.test_slices is None:
        return table
    return _with_test_influence(table, examples.test_influence, examples.test_slices)


def _with_test_influence(table: pa.Table, influence: np.ndarray, slices: Slices) -> pa.Table:
    labels, counts = slices.labels, slices.counts
    by_label, by_value = influence[:, :labels], influence[:, labels:]
    mean = np.nansum(by_label * counts[:labels], axis=1) / counts[:labels].sum()
    table = table.append_column("test_influence", pa.array(mean))
    if labels > 1:
        table = table.append_column("test_influence_by_label", _lists(by_label))
    if by_value.shape[1]:
        table = table.append_column("test_influence_by_slice", _lists(by_value))
    return table


def _lists(numbers: np.ndarray) -> pa.Array:
    """Rows [n, m] as lists, with null for NaN."""
    flat = numbers.reshape(-1)
    offsets = np.arange(0, flat.size + 1, numbers.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, mask=np.isnan(flat)))


def influence_on(table: pa.Table, column: str) -> np.ndarray | None:
    """Returns the lists of `test_influence_by_label` or `test_influence_by_slice` as an array [n,
    S] float64 with NaN for null; None where the rows have no such column.
    """
    if column not in table.column_names:
        return None
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1)


def table_rows(min_suspicion: float, with_test: bool) -> TableRows:
    """Returns the columns of an audit in a BigQuery table: those of the examples, and `suspect`.

    `with_test` says whether there is a test set.
    """
    none, integers = np.empty(0), np.empty(0, np.int64)
    origins = Origins((), np.empty(0, np.int32), integers, np.empty((0, 16), np.uint8))
    # Influence by label and by slice is left out: it is null for labels without test examples, and
    # a list of BigQuery's holds no null.
    test = (np.empty((0, 1)), Slices(1, (), np.ones(1, np.int64))) if with_test else (None, None)
    examples = AuditedExamples(
        0, np.empty(0, "S1"), origins, integers, integers, none, none, none, *test
    )
    written = to_table(examples, Judgement(none, integers, none)).drop_columns("record")
    suspect = Computed("suspect", pa.bool_(), f"`suspicion` >= {min_suspicion!r}")
    return TableRows("examples-", written.schema, (suspect,))
