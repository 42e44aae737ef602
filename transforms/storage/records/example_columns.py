"""Batches of serialized `tf.train.Example`s as columns, found without parsing each by itself.

Records of one program have their keys in one order. So all records of a batch are walked in step:
the first record gives the next key of the map, and an array gives its byte offset in each record. A
record that differs, or is damaged, is parsed alone, strictly, and written anew as the walk expects
it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from transforms.core.ids import id_array
from transforms.storage.records.example_wire import (
    BYTES_LIST,
    FLOAT_LIST,
    INT64_LIST,
    LONGEST_VARINT,
    Feature,
    WireError,
    entry_head,
    entry_keys,
    numbers_of,
    read_features,
    serialize_example,
    varint,
)

# Bytes of records that are walked together: they stay in a processor's last cache until they are
# copied, and the walk's operations, of which there are about a hundred, are long.
_PIECE_BYTES = 8 << 20

# Numbers of a short dtype that are converted together, in a processor's first or second cache.
_CONVERTED = 1 << 15

# Zeros behind a batch's bytes, so that the few that are looked at together lie within.
_MARGIN = 16

# Orders of keys that the records of a batch are tried with; others are parsed alone.
_MOST_ORDERS = 4


class DamagedRecord(ValueError):
    """A record of a batch cannot be read.

    Attributes:
        index: which of the batch.
        reason: what was expected, and what was found.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"record {index}: {reason}")
        self.index = index
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ArrayContent:
    """A list whose content is the bytes of an array, little-endian.

    Attributes:
        kind: `BYTES_LIST` of one byte string, or `FLOAT_LIST`.
        dtype: of the stored numbers.
        count: numbers of the array.
    """

    kind: int
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * self.count


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """Neighbouring records of a batch, whose contents were found.

    Attributes:
        rows: [m] their rows in the batch.
        data: their bytes, one record after the other.
        starts, sizes: [m] int64 by key, where the content of its list is in `data`: the only byte
            string, or packed numbers.
    """

    rows: np.ndarray
    data: np.ndarray
    starts: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]


class ExampleColumns:
    """The contents of some keys of n serialized `tf.train.Example`s.

    Attributes:
        arrays: [n, count] by key of `arrays`, float32, or float64 where that is stored.
    """

    def __init__(
        self,
        serialized: Sequence[bytes],
        kinds: Mapping[str, int],
        arrays: Mapping[str, ArrayContent] | None = None,
    ) -> None:
        """Parses records.

        Args:
            serialized: the records.
            kinds: by key the kind of its lists, `BYTES_LIST` of one byte string, `FLOAT_LIST` or
                `INT64_LIST`. A missing key is an empty list of numbers.
            arrays: further keys, whose contents are arrays of one size.

        Raises:
            DamagedRecord: a record is no `tf.train.Example`, has another kind of list under a key,
                no byte string or several where one is expected, or an array of another size.
        """
        arrays = arrays or {}
        n = len(serialized)
        self._kinds = kinds
        self.arrays = {
            key: np.empty((n, array.count), np.promote_types(array.dtype, np.float32))
            for key, array in arrays.items()
        }
        listed = {**kinds, **{key: array.kind for key, array in arrays.items()}}
        lengths = np.fromiter(map(len, serialized), np.int64, n)
        pieces = (np.cumsum(lengths) - 1) // _PIECE_BYTES
        rows: list[np.ndarray] = [np.empty(0, np.int64)]
        contents: dict[str, list[np.ndarray]] = {key: [np.empty(0, np.uint8)] for key in kinds}
        sizes: dict[str, list[np.ndarray]] = {key: [np.empty(0, np.int64)] for key in kinds}
        orders: list[list[bytes]] = []
        for piece in np.split(np.arange(n), np.flatnonzero(np.diff(pieces)) + 1):
            for part in _parts(serialized, piece, listed, orders):
                rows.append(part.rows)
                for key in kinds:
                    contents[key].append(_concatenated(part, key))
                    sizes[key].append(part.sizes[key])
                for key, array in arrays.items():
                    _fill(self.arrays[key], part, key, array)
        # In the order in which they were found.
        self._rows = np.concatenate(rows)
        self._contents = {key: np.concatenate(parts) for key, parts in contents.items()}
        self._sizes = {key: np.concatenate(parts) for key, parts in sizes.items()}

    def strings(self, key: str) -> np.ndarray:
        """Returns byte strings: [n], dtype S."""
        sizes, content = self._sizes[key], self._contents[key]
        if len(sizes) and sizes[0] > 0 and (sizes == sizes[0]).all():
            return self._in_order(content.view(f"S{sizes[0]}"))
        return id_array(self.string_list(key))

    def string_list(self, key: str) -> list[bytes]:
        """Returns byte strings: [n]."""
        content, stops = self._contents[key].tobytes(), np.cumsum(self._sizes[key]).tolist()
        found = [content[a:b] for a, b in itertools.pairwise([0, *stops])]
        if (np.diff(self._rows) == 1).all():
            return found
        return [found[i] for i in np.argsort(self._rows).tolist()]

    def number_lists(self, key: str, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns lists of int64 or float32, filled up to the longest: [n, L]; and their lengths
        [n].

        Raises:
            DamagedRecord: a list ends within a number, or an integer has more than ten bytes.
        """
        whole = self._kinds[key] == INT64_LIST
        values, counts = self._integers(key) if whole else self._floats(key)
        width = int(counts.max(initial=0))
        padded = np.full((len(counts), width), fill, values.dtype)
        padded[np.arange(width) < counts[:, None]] = values
        return self._in_order(padded), self._in_order(counts)

    def _in_order(self, found: np.ndarray) -> np.ndarray:
        if (np.diff(self._rows) == 1).all():
            return found
        ordered = np.empty_like(found)
        ordered[self._rows] = found
        return ordered

    def _floats(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns all numbers of packed lists, and how many each record has."""
        sizes = self._sizes[key]
        wrong = np.flatnonzero(sizes % 4)
        if len(wrong):
            raise DamagedRecord(
                int(self._rows[wrong[0]]),
                f"{key!r} has {sizes[wrong[0]]} bytes, which are no whole float32 numbers",
            )
        return self._contents[key].view("<f4").astype(np.float32, copy=False), sizes // 4

    def _integers(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns all numbers of lists of packed varints, and how many each record has."""
        sizes, written = self._sizes[key], self._contents[key]
        last = written < 0x80
        if last.all():
            return written.astype(np.int64), sizes
        owners = np.repeat(np.arange(len(sizes)), sizes)
        ends = np.flatnonzero(last)
        # The first byte of each number, and each byte's index in its number.
        first = np.concatenate([[0], ends + 1])
        septet = np.arange(len(written)) - first[np.cumsum(last) - last]
        borders = np.cumsum(sizes)[sizes > 0] - 1
        bad = np.concatenate([borders[~last[borders]], np.flatnonzero(septet >= LONGEST_VARINT)])
        if len(bad):
            raise DamagedRecord(
                int(self._rows[owners[bad.min()]]), f"{key!r} holds a number that does not end"
            )
        values = (written & 0x7F).astype(np.uint64) << (7 * septet).astype(np.uint64)
        numbers = np.add.reduceat(values, first[:-1]).view(np.int64)
        return numbers, np.bincount(owners[ends], minlength=len(sizes))


def _fill(filled: np.ndarray, part: _Part, key: str, array: ArrayContent) -> None:
    """Fills in the arrays [n, count] of a part's records under a key."""
    sizes, rows = part.sizes[key], part.rows
    wrong = np.flatnonzero(sizes != array.size)
    if len(wrong):
        raise DamagedRecord(
            int(rows[wrong[0]]),
            f"{key!r} has {sizes[wrong[0]]} bytes, expected {array.size}: {array.count} numbers of "
            f"{array.dtype}",
        )
    if not len(rows):
        return
    stored = _slices(part.data, part.starts[key], array.size)
    stored = stored.view(array.dtype.newbyteorder("<") if array.dtype.kind == "f" else array.dtype)
    if rows[-1] - rows[0] == len(rows) - 1:
        _convert(stored, filled[rows[0] : rows[-1] + 1])
    else:
        converted = np.empty((len(rows), array.count), filled.dtype)
        _convert(stored, converted)
        filled[rows] = converted


def _convert(stored: np.ndarray, target: np.ndarray) -> None:
    """Writes stored numbers [m, count] to `target`, as float32 or float64."""
    if stored.dtype.itemsize > 2:
        target[:] = stored
        return
    step = max(1, _CONVERTED // max(1, stored.shape[1]))
    for start in range(0, len(stored), step):
        some, to = stored[start : start + step], target[start : start + step]
        if stored.dtype == np.float16:
            _from_float16(some, to)
        else:
            # A bfloat16 is the upper half of a float32.
            np.left_shift(some.view(np.uint16), np.uint32(16), out=to.view(np.uint32))


def _from_float16(stored: np.ndarray, target: np.ndarray) -> None:
    """Writes float16 numbers to float32 `target`; NumPy's own conversion takes several times as
    long.
    """
    # Sign, exponent and mantissa to where float32 has them, out of an int32 extended by the sign.
    bits = target.view(np.int32)
    np.left_shift(stored.view(np.int16), np.int32(13), out=bits)
    bits &= np.int32(-0x70002000)
    # The exponent's bias is 112 more. A product, unlike a sum of exponents, is right for numbers
    # that float16 holds with less precision, too.
    target *= np.float32(2.0**112)
    special = (stored.view(np.uint16) & 0x7C00) == 0x7C00
    if special.any():
        target[special] = stored[special]


def _slices(data: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Returns slices of `size` bytes that start at `starts` [m]: [m, size], a copy.

    Of a slice that would end beyond the data, its bytes are any.
    """
    count = len(data) - size + 1
    if not len(starts) or count < 1:
        return np.zeros((len(starts), size), np.uint8)
    # As `sliding_window_view`, which takes longer than a small batch.
    windows = np.ndarray((count, size), np.uint8, data, 0, (1, 1))
    return windows[np.minimum(starts, count - 1)]


def _concatenated(part: _Part, key: str) -> np.ndarray:
    """Returns all contents of a key one after the other: [bytes] uint8."""
    starts, sizes = part.starts[key], part.sizes[key]
    if not len(sizes):
        return np.empty(0, np.uint8)
    if sizes[0] and (sizes == sizes[0]).all():
        return _slices(part.data, starts, int(sizes[0])).reshape(-1)
    before = np.cumsum(sizes) - sizes
    return part.data[np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)]


def _parts(
    serialized: Sequence[bytes],
    rows: np.ndarray,
    kinds: Mapping[str, int],
    orders: list[list[bytes]],
) -> Iterator[_Part]:
    """Yields the contents of some records, neighbours [m].

    `orders` are the orders of keys that records before them had; new ones are added.
    """
    tried = 0
    while len(rows):
        if tried == len(orders):
            order = _order_of(serialized[rows[0]])
            if order is None or order in orders or tried == _MOST_ORDERS:
                rewritten = [_rewrite(serialized[row], row, kinds) for row in rows.tolist()]
                part, matching = _walk(rewritten, [key.encode() for key in kinds], kinds)
                assert matching.all()
                yield dataclasses.replace(part, rows=rows)
                return
            orders.append(order)
        records = [serialized[row] for row in rows.tolist()]
        part, matching = _walk(records, orders[tried], kinds)
        if matching.any():
            yield dataclasses.replace(part, rows=rows[matching])
        rows = rows[~matching]
        tried += 1


def _order_of(serialized: bytes) -> list[bytes] | None:
    """Returns the keys of a record in their order; None where it cannot be read."""
    try:
        return entry_keys(serialized)
    except WireError:
        return None


def _walk(
    serialized: Sequence[bytes], order: Sequence[bytes], kinds: Mapping[str, int]
) -> tuple[_Part, np.ndarray]:
    """Walks records whose keys have this order; returns those whose contents were found, and which
    they are, [n] bool.
    """
    data = np.frombuffer(b"".join([*serialized, bytes(_MARGIN)]), np.uint8)
    lengths = np.fromiter(map(len, serialized), np.int64, len(serialized))
    ends = np.cumsum(lengths)
    walk = _Walk(data, ends - lengths, ends)
    starts, sizes = {}, {}
    names = {key.encode(): key for key in kinds}
    walk.enter()
    for key in order:
        name = names.get(key)
        if name is None:
            walk.skip_entry(key)
        else:
            starts[name], sizes[name] = walk.read_entry(key, kinds[name])
    walk.finish()
    matching = walk.matching
    nothing = np.zeros(len(serialized), np.int64)
    for name, kind in kinds.items():
        if name not in starts:
            # A missing key is an empty list of numbers, but not a byte string.
            starts[name] = sizes[name] = nothing
            if kind == BYTES_LIST:
                matching = matching & False
    if not matching.all():
        starts = {name: offsets[matching] for name, offsets in starts.items()}
        sizes = {name: values[matching] for name, values in sizes.items()}
    return _Part(np.arange(0), data, starts, sizes), matching


class _Walk:
    """Records that are walked in step.

    Attributes:
        matching: [n] bool, whether a record has been as expected so far.
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self._data = data
        self._positions = starts
        self._ends = ends
        self.matching = np.ones(len(starts), bool)

    def enter(self) -> None:
        """Enters `tf.train.Example.features`, the only field, to the record's end."""
        length = self._length(1)
        self.matching &= self._positions + length == self._ends

    def skip_entry(self, key: bytes) -> None:
        """Passes over the next entry of the map, which has this key."""
        self._positions = self._enter_entry(key)

    def read_entry(self, key: bytes, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the next entry of the map, which has this key: where its content starts, and how
        many bytes it has.
        """
        end = self._enter_entry(key)
        length = self._length(2)
        self.matching &= self._positions + length == end
        length = self._length(kind)
        self.matching &= self._positions + length == end
        if kind == BYTES_LIST or length.all():
            size = self._length(1)
            start = self._positions
            self.matching &= start + size == end
        else:
            # A list without numbers has no field.
            empty, before, matching = length == 0, self._positions, self.matching.copy()
            size = np.where(empty, 0, self._length(1))
            start = np.where(empty, before, self._positions)
            self.matching = np.where(empty, matching, self.matching) & (start + size == end)
        self._positions = end
        return start, size

    def finish(self) -> None:
        """Expects the end of all records."""
        self.matching &= self._positions == self._ends

    def _enter_entry(self, key: bytes) -> np.ndarray:
        """Enters an entry of the map and passes over its key; returns where the entry ends."""
        length = self._length(1)
        end = self._positions + length
        head = b"\x0a" + varint(len(key)) + key
        seen = _slices(self._data, self._positions, len(head))
        self.matching &= (seen == np.frombuffer(head, np.uint8)).all(axis=1)
        self._positions = self._positions + len(head)
        self.matching &= self._positions <= end
        self.matching &= end <= self._ends
        return end

    def _length(self, number: int) -> np.ndarray:
        """Reads the tag and the length of a field of this number; a length of more than four bytes
        does not match.
        """
        head = _slices(self._data, self._positions, 2)
        self.matching &= head[:, 0] == (number << 3 | 2)
        length = head[:, 1].astype(np.int64)
        self._positions = self._positions + 2
        longer = np.flatnonzero(length >= 0x80)
        length[longer] &= 0x7F
        shift = 7
        while len(longer):
            if shift > 21:
                self.matching[longer] = False
                break
            septets = self._data.take(self._positions[longer], mode="clip").astype(np.int64)
            length[longer] |= (septets & 0x7F) << shift
            self._positions[longer] += 1
            longer = longer[septets >= 0x80]
            shift += 7
        return length


def _rewrite(serialized: bytes, row: int, kinds: Mapping[str, int]) -> bytes:
    """Parses one record strictly and writes the expected keys as the walk expects them."""
    try:
        features = read_features(serialized)
        entries = []
        for name, kind in kinds.items():
            key = name.encode()
            content = _content(features.get(key), name, kind)
            entries += [entry_head(key, kind, len(content)), content]
        return serialize_example(*entries)
    except WireError as error:
        raise DamagedRecord(row, str(error)) from error


_KINDS = {BYTES_LIST: "byte strings", FLOAT_LIST: "floats", INT64_LIST: "integers"}


def _content(feature: Feature | None, name: str, kind: int) -> bytes:
    if feature is None or feature.kind is None:
        if kind == BYTES_LIST:
            raise WireError(f"there is no {name!r}")
        return b""
    if feature.kind != kind:
        raise WireError(f"{name!r} is a list of {_KINDS[feature.kind]}, expected {_KINDS[kind]}")
    if kind != BYTES_LIST:
        return numbers_of(feature)
    if len(feature.values) != 1:
        raise WireError(f"{name!r} has {len(feature.values)} byte strings, expected 1")
    value = feature.values[0]
    assert isinstance(value, bytes)
    return value
