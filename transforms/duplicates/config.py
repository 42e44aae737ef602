"""Limits of the search for duplicates."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DuplicateTuning:
    """Limits of memory in the search for duplicates.

    `vector_bytes` also decides how many pairs are compared: results count those left out.

    Attributes:
        rows_at_once: largest set whose signatures are compared in a single step: 4 million take
            0.2 GB. A larger set is compared part by part, table by table.
        rows_per_part: about how many signatures a part of a table has (50 MB).
        vector_bytes: memory of the vectors of all pairs that are compared exactly (256 MB).
        waiting_pairs: number of pairs that may wait before the closest of them are chosen (34 MB).
            Where nearly all examples are alike there are many more pairs than are compared.
    """

    rows_at_once: int = 1 << 22
    rows_per_part: int = 1 << 20
    vector_bytes: int = 256 << 20
    waiting_pairs: int = 1 << 20
