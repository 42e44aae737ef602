"""Configurations of vectors, of indexes over them, and of the search by an index."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ProjectionConfig:
    """The settings of vectors; see `transforms.vectors.projections.methods`.

    Attributes:
        projection: the method: `auto`, `principal`, `sketch`, `random` or `exact`.
        dimensions: the most numbers of a vector; None for `VectorTuning.dimensions`, where exact
            vectors have more.
        seed: the seed of random numbers.
        normalize: `none`, or another normalisation for vectors of length 1. None is `none`, or with
            `projection_of` the normalisation of that projection.
        learning_rates: η of each checkpoint; None for those of the feature set.
        allow_large_vectors: whether vectors may have more than `VectorTuning.largest` numbers.
        formats: the formats of exported vectors, of `transforms.vectors.formats.FORMATS`.
        projection_of: a directory of vectors, or an index, whose projection is used, so that the
            new vectors are comparable with those; the method's settings are not used then.
    """

    projection: str = "auto"
    dimensions: int | None = None
    seed: int = 0
    normalize: str | None = None
    learning_rates: tuple[float, ...] | None = None
    allow_large_vectors: bool = False
    formats: tuple[str, ...] = ("npy",)
    projection_of: str | None = None


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The settings of a search by an index.

    Attributes:
        index: the directory of the index.
        k: proponents and opponents of each test example.
        oversampling: candidates of each sign that are scored exactly, over k.
        nprobe: lists of an `ivf` index that are looked into; None for an eighth of them.
        ef_search: vectors held while an `hnsw` index is walked through; None for twice the
            candidates.
        recall_sample: test examples that are also searched exactly, to measure recall; 0 for none.
        test_ids: the test examples to search for; empty for all.
    """

    index: str
    k: int = 10
    oversampling: int = 4
    nprobe: int | None = None
    ef_search: int | None = None
    recall_sample: int = 100
    test_ids: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class VectorTuning:
    """Sizes of vectors and of their files.

    Attributes:
        dimensions: numbers of a vector where nothing else is asked for. With so many,
            `benchmarks.neighbours` found all of the exact top 50 among the first 200 candidates.
        largest: numbers of a vector beyond which `allow_large_vectors` is needed: half a megabyte
            for each example is hardly meant.
        file_bytes: bytes of a file of vectors, at most, in float32: a file is held in memory while
            each format of it is made.
        file_rows: vectors of a file, at most: text formats take many times the bytes of float32.
        index_bytes: bytes of an index file, at most. It is read whole by each worker process.
        index_extra_bytes: bytes of a vector in an index beside its numbers: an `hnsw` index has 64
            links of 4 bytes at the lowest level, and fewer above.
    """

    dimensions: int = 1024
    largest: int = 1 << 17
    file_bytes: int = 64 << 20
    file_rows: int = 50_000
    index_bytes: int = 1 << 33
    index_extra_bytes: int = 300


DEFAULT_TUNING = VectorTuning()
