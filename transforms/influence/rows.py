"""Influence as files: rows in the test set's order, as JSON lines and as Parquet, committed by a
manifest.

| field | content |
|---|---|
| `test_id`, `test_label`, `test_prediction` | the test example |
| `test_probability` | of its prediction; null for a regression |
| `self_influence` | the influence of the test example on itself |
| `proponents`, `opponents` | lists of `{train_id, train_label, score}`, strongest first |

Where scores are summed over the positions of examples, an example has as many labels as positions.
Its row has numbers instead: `test_positions`, `test_wrong_positions` and
`test_label_probability`, and `train_positions` of its candidates.

`report.html`, for a person: the worst-predicted test examples beside their candidates.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.core.topk import Ranking
from transforms.influence import traces
from transforms.influence.protocol import ScoredBlock
from transforms.influence.traces import Trace
from transforms.runtime import counters
from transforms.storage import filesystems, manifests
from transforms.storage.filesystems import StoredFile
from transforms.storage.manifests import Manifest
from transforms.storage.tables.tabular import label_array, string_array, to_jsonl


def to_table(block: ScoredBlock, schema: pa.Schema) -> pa.Table:
    """Returns the rows of a block, by its protocol's schema."""
    n = len(block.test_ids)
    return pa.table(
        [
            string_array(block.test_ids),
            *block.columns(schema),
            pa.array(block.self_influence),
            _candidates(block.best.proponents, n, schema.field("proponents").type),
            _candidates(block.best.opponents, n, schema.field("opponents").type),
        ],
        schema=schema,
    )


def _candidates(ranking: Ranking, n: int, kind: pa.DataType) -> pa.Array:
    fields = [kind.value_type.field(i) for i in range(kind.value_type.num_fields)]
    # The second is the label, or the number of positions.
    arrays = [
        string_array(ranking.ids),
        label_array(ranking.labels, fields[1].type),
        pa.array(ranking.scores),
    ]
    return pa.ListArray.from_arrays(
        ranking.offsets(n).astype(np.int32),
        pa.StructArray.from_arrays(arrays, fields=fields),
        type=kind,
    )


@dataclasses.dataclass(frozen=True)
class WrittenRows:
    """The two files of the same rows, their number among all shards, and the worst-predicted of
    them.
    """

    shard: int
    jsonl: StoredFile
    parquet: StoredFile
    worst: list[Trace]


def write_rows(
    directory: str,
    shard: int,
    blocks: Iterable[tuple[int, ScoredBlock]],
    schema: pa.Schema,
) -> WrittenRows:
    """Writes the rows of one shard; each of its blocks comes with the number of its first row."""
    ordered = [block for _, block in sorted(blocks, key=lambda pair: pair[0])]
    table = pa.concat_tables([to_table(block, schema) for block in ordered]).combine_chunks()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=table.num_rows)
    counters.add("rows-written", table.num_rows)
    return WrittenRows(
        shard,
        filesystems.write(
            directory, f"influence-{shard:05d}.jsonl", to_jsonl(table), table.num_rows
        ),
        filesystems.write(
            directory, f"influence-{shard:05d}.parquet", buffer.getvalue(), table.num_rows
        ),
        traces.of_rows(table, ordered),
    )


def read_rows(directory: str) -> list[dict[str, Any]]:
    """Reads the rows of a committed result, in order: of influence those of all test examples, of
    an audit those of the listed suspects. The pages of formats describe their fields.

    Args:
        directory: the result.

    Raises:
        InputError: it is not complete, or a file is damaged.
    """
    manifest = manifests.read(directory, Manifest, "directory")
    return [
        orjson.loads(line)
        for file in manifest.files
        if file.name.endswith(".jsonl")
        for line in filesystems.read_verified(directory, file).splitlines()
    ]
