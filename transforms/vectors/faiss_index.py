"""FAISS indexes of vectors, by inner product: built, stored, and searched for candidates of both
signs.

A proponent of a test example is a neighbour of its vector, an opponent a neighbour of the vector's
negative. An index gives candidates; their exact scores decide. FAISS is an extra
(`tracin-beam[neighbours]`), so that nobody else has to install it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transforms.core.errors import InputError

KINDS = ("auto", "flat", "ivf", "hnsw")

# Up to so many vectors an index that compares all of them is no slower than one of lists whose
# answers are as good (`benchmarks.neighbours`).
_FLAT_MOST = 200_000
# Training vectors for each list's centre: FAISS warns of fewer than 39.
_TRAINED_BY = 40
# Lists of n vectors are 4 √n: FAISS's guidelines recommend 4 to 16 √n up to a million.
_LISTS = 4
# Links of each vector in a graph, FAISS's own default, and candidates while it is built, twice its
# default of 40.
_LINKS, _BUILD_EFFORT = 32, 80
# Lists that are searched, at least, and the part of all of them; vectors that a walk through a
# graph holds, at least.
_LEAST_LISTS, _LISTS_PART, _LEAST_EF_SEARCH = 32, 8, 400


def require() -> Any:
    """Returns the FAISS library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "FAISS is not installed here: install it with pip install 'tracin-beam[neighbours]'"
        ) from error
    return faiss


def kind_for(kind: str, count: int) -> str:
    """Returns a kind of index for `count` vectors: `auto` is `flat`, which is exact, or for many
    vectors `ivf`. A graph, `hnsw`, has to be asked for.
    """
    return kind if kind != "auto" else "flat" if count <= _FLAT_MOST else "ivf"


def build(vectors: np.ndarray, kind: str, seed: int) -> Any:
    """Builds an index of vectors [n, d] float32, n at least 1; it numbers them by their rows.

    `ivf` gives an equal index for equal vectors and seed on one machine; `hnsw` does not, since its
    threads add vectors as they come.
    """
    faiss = require()
    count, dimensions = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(dimensions)
    elif kind == "ivf":
        lists = max(1, min(int(_LISTS * math.sqrt(count)), count // _TRAINED_BY))
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dimensions), dimensions, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = seed & 0x7FFFFFFF
        index.cp.min_points_per_centroid = 1
        rows = np.linspace(0, count - 1, min(count, lists * _TRAINED_BY)).astype(np.int64)
        index.train(vectors[rows])
    else:
        index = faiss.IndexHNSWFlat(dimensions, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_EFFORT
    index.add(vectors)
    return index


def nearest(
    index: Any,
    queries: np.ndarray,
    count: int,
    nprobe: int | None = None,
    ef_search: int | None = None,
) -> np.ndarray:
    """Searches for the rows of the `count` vectors with the highest products with queries [n, d],
    and of those with the lowest: [2, n, count] int64, −1 where there are fewer.

    `nprobe` lists of an `ivf` index are looked into, an eighth if None, at least 32. `ef_search`
    vectors of an `hnsw` index are held while it is walked through, twice `count` if None, at least
    400.
    """
    faiss = require()
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = min(index.nlist, nprobe or max(_LEAST_LISTS, index.nlist // _LISTS_PART))
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = ef_search or max(2 * count, _LEAST_EF_SEARCH)
    count = min(count, index.ntotal)
    return np.stack(
        [
            index.search(np.ascontiguousarray(signed, np.float32), count)[1]
            for signed in (queries, -queries)
        ]
    )


def to_bytes(index: Any) -> bytes:
    """Returns an index as FAISS stores it."""
    return bytes(require().serialize_index(index))


def of_bytes(data: bytes) -> Any:
    """Returns the index that FAISS has stored.

    Raises:
        InputError: FAISS cannot read it.
    """
    faiss = require()
    try:
        return faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise InputError(
            f"FAISS {faiss.__version__} cannot read the index: {str(error).splitlines()[-1]}"
        ) from error
