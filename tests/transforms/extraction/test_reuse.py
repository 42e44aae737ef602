"""`--base`: what did not change is copied, and the set is what it would be if all of it had been
computed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Outcome, Tiny, damage, example, write_records
from tests.transforms.extraction.test_extract import die_at_file
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.resume import read_finished
from transforms.extraction.reuse.matching import bucketed, example_key, match_examples
from transforms.runtime import counters
from transforms.storage import filesystems, manifests, tfrecords
from transforms.storage.feature_manifest import FeatureManifest
from transforms.storage.filesystems import StoredFile

Run = Callable[..., Outcome]


@pytest.fixture
def extract(tracin: Run, tiny: Tiny, tmp_path: pathlib.Path) -> Run:
    """Runs `tracin features` on a directory of examples; returns its outcome, and leaves its
    counters.
    """

    def run(examples: str, output: str, *words: str, id_key: bool = True) -> Outcome:
        return tracin(
            "features",
            f"--examples={tmp_path / examples}/*",
            f"--checkpoints={tiny.glob}",
            f"--output={tmp_path / output}",
            *(["--id_key=id"] if id_key else []),
            *words,
        )

    return run


def records(directory: pathlib.Path) -> tuple[FeatureManifest, dict[bytes, bytes]]:
    """A set's manifest and its serialized records by id."""
    import tensorflow as tf

    found = manifests.read(str(directory), FeatureManifest, "features")
    payloads = [
        payload
        for file in found.files
        for payload in tfrecords.split_frames(filesystems.read_verified(str(directory), file))
    ]
    by_id = {
        tf.train.Example.FromString(payload)
        .features.feature["example_id"]
        .bytes_list.value[0]: payload
        for payload in payloads
    }
    assert len(by_id) == len(payloads)
    return found, by_id


def assert_as_computed(
    extract: Run,
    tmp_path: pathlib.Path,
    examples: str,
    output: str,
    *words: str,
    id_key: bool = True,
) -> None:
    """The set in `output` has the manifest's counts, fingerprint and records, to the byte, that a
    run without a base gives.
    """
    assert extract(examples, "computed", *words, id_key=id_key).status == 0
    (found, got), (expected, wanted) = records(tmp_path / output), records(tmp_path / "computed")
    assert got == wanted
    assert (found.fingerprint, found.counts, found.rejected) == (
        expected.fingerprint,
        expected.counts,
        expected.rejected,
    )


def test_of_an_unchanged_set_nothing_is_computed(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    for shard in range(3):
        write_records(tmp_path / "a" / f"s-{shard}", tiny.payloads()[shard::3])
    assert extract("a", "one").status == 0
    outcome = extract("a", "two", f"--base={tmp_path / 'one'}")
    assert outcome.status == 0
    assert outcome.out.splitlines()[-1].endswith(": copied 40 that did not change")
    assert "examples-extracted" not in counters.snapshot()
    (one, first), (two, second) = records(tmp_path / "one"), records(tmp_path / "two")
    assert first == second
    assert [file.count for file in one.files] == [file.count for file in two.files]
    assert list(first) == list(second)


def test_new_and_changed_examples_are_computed_and_gone_ones_are_gone(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "a" / "s-0", payloads[:15])
    write_records(tmp_path / "a" / "s-1", payloads[15:30])
    assert extract("a", "one").status == 0
    changed = [
        example(image=tiny.images[i] + 1, label=int(tiny.labels[i]), id=f"ex-{i:02d}")
        for i in (2, 20)
    ]
    relabelled = example(image=tiny.images[7], label=int((tiny.labels[7] + 1) % 3), id="ex-07")
    # Cut and ordered otherwise, with 5 of the old examples gone, 3 changed and 10 new.
    later = [*payloads[20:40], *changed, relabelled, *payloads[:15]]
    later = [p for p in later if p not in (payloads[20], payloads[2], payloads[7])]
    write_records(tmp_path / "b" / "s-0", later[:3])
    write_records(tmp_path / "b" / "s-1", later[3:], "GZIP")
    outcome = extract("b", "two", f"--base={tmp_path / 'one'}")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith(
        ": read 13 examples, copied 22 that did not change"
    )
    assert counters.snapshot()["examples-extracted"] == 13
    assert_as_computed(extract, tmp_path, "b", "two")


def test_without_an_id_key_an_inserted_record_renames_what_follows(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "a" / "s-0", payloads[:20])
    write_records(tmp_path / "a" / "s-1", payloads[20:30])
    assert extract("a", "one", id_key=False).status == 0
    write_records(tmp_path / "b" / "s-0", [*payloads[:10], payloads[35], *payloads[10:20]])
    write_records(tmp_path / "b" / "s-1", payloads[20:30])
    outcome = extract("b", "two", f"--base={tmp_path / 'one'}", id_key=False)
    assert outcome.out.splitlines()[-1].endswith(
        ": read 11 examples, copied 20 that did not change"
    )
    assert_as_computed(extract, tmp_path, "b", "two", id_key=False)


def test_what_was_set_aside_is_set_aside_again_and_kept_keys_are_copied(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = [
        example(image=x, label=int(y), id=f"é{i}", week=i)
        for i, (x, y) in enumerate(zip(tiny.images, tiny.labels, strict=True))
    ]
    bad = [
        example(image=tiny.images[0], label=99, id="bad-label", week=1),
        b"no example",
        example(image=[1.0], label=1, id="short", week=2),
    ]
    path = write_records(tmp_path / "a" / "s-0", [*payloads[:10], *bad, *payloads[10:]])
    damage(path, path.stat().st_size - 100)
    words = ("--max_rejected_fraction=0.2", "--keep_keys=week")
    assert extract("a", "one", *words).status == 0
    # The same records at other places of another file.
    path.rename(path.with_name("t-0"))
    outcome = extract("a", "two", *words, f"--base={tmp_path / 'one'}")
    assert outcome.status == 0, outcome.err
    assert counters.snapshot()["examples-unchanged"] == 39
    assert (
        "examples-extracted" not in counters.snapshot()
        or counters.snapshot()["examples-extracted"] == 0
    )
    assert_as_computed(extract, tmp_path, "a", "two", *words)


def test_an_id_used_twice_is_found_though_one_of_them_is_copied(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads()[:20])
    assert extract("a", "one").status == 0
    for again in (tiny.payloads()[3], example(image=tiny.images[0], label=0, id="ex-03")):
        write_records(tmp_path / "a" / "s-1", [again])
        outcome = extract("a", "two", f"--base={tmp_path / 'one'}")
        assert outcome.status == 1
        assert "the id 'ex-03' is used twice" in outcome.err
        assert not (tmp_path / "two" / "manifest.json").exists()


def test_a_run_that_died_goes_on_only_with_the_same_base(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "a" / "s-0", payloads[:5])
    assert extract("a", "one").status == 0
    for shard in range(1, 4):
        write_records(tmp_path / "a" / f"s-{shard}", payloads[10 * shard - 5 : 10 * shard + 5])
    base = f"--base={tmp_path / 'one'}"
    with monkeypatch.context() as patch:
        die_at_file(patch, 3)
        with pytest.raises(RuntimeError):
            extract("a", "two", base)
    files_done = list((tmp_path / "two").glob("finished-*"))
    assert len(files_done) == 2
    outcome = extract("a", "two", base)
    assert outcome.status == 0
    assert counters.snapshot()["examples-reused"] == 20
    assert counters.snapshot()["examples-unchanged"] == 5
    assert_as_computed(extract, tmp_path, "a", "two")
    # What was left to extract beside one base is not all that there is without it.
    found = manifests.read(str(tmp_path / "two"), FeatureManifest, "features")
    assert (
        read_finished(
            str(tmp_path / "two"),
            found.fingerprint,
            InputFile(0, str(tmp_path / "a" / "s-0"), "s-0", 1),
        )
        is None
    )


@pytest.mark.parametrize(
    ("base", "words", "parts"),
    [
        (
            "one",
            ["--labels=predicted"],
            ("--base=", "was extracted with other settings (label_key was", "labels was"),
        ),
        ("one", ["--feature_dtype=bfloat16"], ('feature_dtype was "float32", is "bfloat16"',)),
        ("nowhere", [], ("nowhere", "is not a complete set")),
        ("two", [], ("is where the new set would go",)),
    ],
)
def test_a_base_that_cannot_serve_is_refused_in_one_line(
    extract: Run,
    tiny: Tiny,
    tmp_path: pathlib.Path,
    base: str,
    words: list[str],
    parts: Sequence[str],
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads())
    assert extract("a", "one").status == 0
    outcome = extract("a", "two", f"--base={tmp_path / base}", *words)
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    for part in parts:
        assert part in outcome.err
    assert not (tmp_path / "two").exists()


def test_a_damaged_base_is_told_and_nothing_of_it_is_used(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads())
    assert extract("a", "one").status == 0
    (file,) = (tmp_path / "one").glob("features-*")
    damage(file, 500)
    outcome = extract("a", "two", f"--base={tmp_path / 'one'}")
    assert outcome.status == 1
    assert f"{file} is damaged" in outcome.err
    assert not (tmp_path / "two" / "manifest.json").exists()


def test_influence_copies_what_both_sets_of_an_earlier_result_hold(
    tracin: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "test-0", payloads[30:])
    write_records(tmp_path / "train-0", payloads[:15])

    def influence(output: str, *words: str) -> Outcome:
        examples = (f"--train_examples={tmp_path}/train-*", f"--test_examples={tmp_path}/test-*")
        return tracin(
            "influence",
            *examples,
            f"--checkpoints={tiny.glob}",
            "--id_key=id",
            f"--output={tmp_path / output}",
            *words,
        )

    assert influence("one").status == 0
    write_records(tmp_path / "train-1", payloads[15:30])
    outcome = influence("two", f"--base={tmp_path / 'one'}")
    assert outcome.status == 0, outcome.err
    assert outcome.out.splitlines()[-1].endswith(
        "read 15 examples, copied 25 that did not change, scored 300 pairs"
    )
    assert influence("computed").status == 0
    for name in ("influence-00000.jsonl", "influence-00000.parquet"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "computed" / name).read_bytes()


def test_reading_extracting_and_writing_stay_one_stage_and_no_feature_is_grouped(
    extract: Run, tracin: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    from apache_beam.portability import common_urns
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    from tests.pipeline.test_graph import build

    (tmp_path / "again").mkdir()
    write_records(tmp_path / "train-0", tiny.payloads()[:20])
    write_records(tmp_path / "test-0", tiny.payloads()[20:])
    examples = (f"--train_examples={tmp_path}/train-*", f"--test_examples={tmp_path}/test-*")
    words = (f"--checkpoints={tiny.glob}", "--id_key=id", f"--output={tmp_path / 'one'}")
    assert tracin("influence", *examples, *words).status == 0
    graph = build(tiny, tmp_path / "again", tiny.payloads(), f"--base={tmp_path / 'one'}")
    _, stages = fn_runner.FnApiRunner().create_stages(graph)
    (stage,) = (
        fused
        for fused in ({transform.unique_name for transform in stage.transforms} for stage in stages)
        if any("ExtractTrainFeatures/ComputeFeatureSet/ReadExamples" in name for name in fused)
    )
    for part in ("ExtractFeatures/RunCheckpoints", "WriteFeatures/WriteFiles"):
        assert any(f"ExtractTrainFeatures/ComputeFeatureSet/{part}" in name for name in stage), part
    grouped = {
        transform.unique_name.split("/", 3)[3].split("/")[0]
        for transform in graph.components.transforms.values()
        if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn
        and "FindUnchanged/" in transform.unique_name
    }
    # Names of files, keys of records, and places of records.
    assert grouped == {"SpreadBaseFiles", "GroupKeys", "GroupByBaseFile", "GroupByFile"}


# Matching


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=40), st.integers(1, 7))
def test_every_key_is_in_one_bucket_and_equal_keys_in_the_same(
    keys: list[bytes], buckets: int
) -> None:
    bucket_of: dict[bytes, int] = {}
    seen = []
    for bucket, places, joined in bucketed(keys, buckets):
        assert 0 <= bucket < buckets
        assert joined == b"".join(keys[place] for place in places)
        seen += places.tolist()
        for place in places:
            assert bucket_of.setdefault(keys[place], bucket) == bucket
    assert sorted(seen) == list(range(len(keys)))


PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3)), max_size=30)


@given(base=PLACES, new=PLACES)
def test_matches_are_the_pairs_with_equal_id_and_content(
    base: list[tuple[int, int, int]], new: list[tuple[int, int, int]]
) -> None:
    """Each is (file, id, content); a place in a file is the order in the list. Ids are unique in a
    base.
    """
    base = list({number: (file, number, content) for file, number, content in base}.values())

    def by_file(entries: list[tuple[int, int, int]]) -> dict[int, list[tuple[int, int, int]]]:
        return {file: [entry for entry in entries if entry[0] == file] for file in range(3)}

    def element(owner: object, entries: list[tuple[int, int, int]]) -> tuple:
        keys = [
            example_key(str(number).encode(), bytes([content])) for _, number, content in entries
        ]
        return owner, np.arange(len(entries)), b"".join(keys)

    here, there = by_file(new), by_file(base)
    elements = [
        element(StoredFile(f"b{file}", 1, 1, len(entries)), entries)
        for file, entries in there.items()
    ]
    elements += [
        element(InputFile(file, f"n{file}", "", 1), entries) for file, entries in here.items()
    ]
    found = set()
    for match in match_examples(elements[::-1]):
        for row, offset in zip(match.rows.tolist(), match.offsets.tolist(), strict=True):
            old, now = there[int(match.stored.name[1:])][row], here[match.file.index][offset]
            assert old[1:] == now[1:]
            assert now[1:] not in found
            found.add(now[1:])
    assert found == {entry[1:] for entry in base} & {entry[1:] for entry in new}
