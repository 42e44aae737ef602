"""FAISS indexes of vectors, by inner product: built, stored, and asked for candidates of both
signs.

A proponent of a test example is a neighbour of its vector, an opponent one of the vector's
negative. What an index answers are candidates; their exact scores decide. FAISS is an extra
(`tracin-beam[neighbours]`), so that nobody else has to install it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transforms.core.errors import InputError

KINDS = ("auto", "flat", "ivf", "hnsw")

# Up to so many vectors an index that compares all of them is no slower than one of lists whose
# answers are as good.
_FLAT_MOST = 200_000
# Vectors that the lists' centres are found by, for each list.
_TRAINED_BY = 40
# Neighbours of each vector in a graph, and how many are looked at while it is built.
_LINKS, _BUILD_EFFORT = 32, 80


def require() -> Any:
    """The FAISS library.

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
    """What `auto` is for `count` vectors: `flat`, which is exact, or for many `ivf`. A graph,
    `hnsw`, has to be asked for.
    """
    return kind if kind != "auto" else "flat" if count <= _FLAT_MOST else "ivf"


def build(vectors: np.ndarray, kind: str, seed: int) -> Any:
    """An index of vectors [n, d] float32, n at least 1; numbers of vectors are their rows.

    `ivf` gives an equal index for equal vectors and seed on one machine; `hnsw` does not, since its
    threads add vectors as they come.
    """
    faiss = require()
    count, dimensions = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(dimensions)
    elif kind == "ivf":
        lists = max(1, min(int(4 * math.sqrt(count)), count // _TRAINED_BY))
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
    """The rows of the `count` vectors that have the highest products with queries [n, d], and those
    that have the lowest: [2, n, count].

    int64; −1 where there are fewer. `nprobe` lists of an `ivf` index are looked into, an eighth if
    None; `ef_search` vectors of an `hnsw` one are held while it is walked through, twice `count` if
    None, at least 400.
    """
    faiss = require()
    if isinstance(index, faiss.IndexIVF):
        index.nprobe = min(index.nlist, nprobe or max(32, index.nlist // 8))
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = ef_search or max(2 * count, 400)
    count = min(count, index.ntotal)
    return np.stack(
        [
            index.search(np.ascontiguousarray(signed, np.float32), count)[1]
            for signed in (queries, -queries)
        ]
    )


def to_bytes(index: Any) -> bytes:
    """An index as FAISS stores it."""
    return bytes(require().serialize_index(index))


def of_bytes(data: bytes) -> Any:
    """The index that FAISS has stored.

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
