"""Flags of vectors and their indexes: how vectors are made, built and searched."""

from __future__ import annotations

from pipeline.flags.declarations import kinds
from pipeline.flags.declarations.flag import Flag, commands

_MAKING = commands("export", "index")
_SEARCH = commands("search")

PROJECTION = (
    Flag(
        "projection",
        kinds.choice("auto", "principal", "sketch", "random", "exact"),
        "how vectors are made shorter: auto and principal fit the training set, sketch and random "
        "are unbiased, exact leaves nothing out ({default})",
        _MAKING,
        "vectors",
        default="auto",
    ),
    Flag(
        "dimensions",
        kinds.POSITIVE,
        "maximum length of a vector (1024, or less where exact vectors are shorter)",
        _MAKING,
        "vectors",
    ),
    Flag("seed", kinds.WHOLE, "random seed ({default})", _MAKING, "vectors", default=0),
)

FLAGS = (
    Flag(
        "formats",
        kinds.FORMATS,
        "some of npy, parquet, tfrecord, faiss (needs the extra `neighbours`) and vertex, "
        "separated by commas (npy)",
        commands("export"),
        "vectors",
        default=("npy",),
    ),
    Flag(
        "kind",
        kinds.choice("auto", "flat", "ivf", "hnsw"),
        "flat compares all vectors, ivf searches some lists, hnsw walks through a graph; auto is "
        "flat or, for many vectors, ivf ({default})",
        commands("index"),
        "vectors",
        default="auto",
    ),
    Flag(
        "allow_large_vectors",
        kinds.SWITCH,
        "make vectors of more than 131,072 numbers",
        _MAKING,
        "vectors",
        default=False,
    ),
    Flag(
        "oversampling",
        kinds.POSITIVE,
        "candidates that are scored exactly, as a multiple of k ({default})",
        _SEARCH,
        "search",
        default=4,
    ),
    Flag(
        "nprobe",
        kinds.POSITIVE,
        "lists of an ivf index that are searched (an eighth)",
        _SEARCH,
        "search",
    ),
    Flag(
        "ef_search",
        kinds.POSITIVE,
        "vectors held during the walk through an hnsw index (twice the candidates)",
        _SEARCH,
        "search",
    ),
    Flag(
        "recall_sample",
        kinds.WHOLE,
        "test examples whose exact answer is computed too, to measure recall ({default})",
        _SEARCH,
        "search",
        default=100,
    ),
)
