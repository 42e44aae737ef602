"""Records of unchanged examples are copied, and the set is what a run without a base computes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import apache_beam as beam
import pytest
from apache_beam.portability import common_urns
from apache_beam.runners.portability.fn_api_runner import fn_runner

from tests.conftest import Outcome, Tiny, damage, example, write_records
from tests.fakes.models import dying_at
from tests.stage_one import extract_set, records_by_id, stage_one
from transforms.examples.format import InputFile
from transforms.extraction.feature_files.resume import read_finished
from transforms.extraction.tuning import ExtractionTuning
from transforms.runtime import counters
from transforms.storage import manifests
from transforms.storage.manifests import FeatureManifest

Run = Callable[..., Outcome]


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
    manifest, records = records_by_id(tmp_path / output)
    expected, computed = records_by_id(tmp_path / "computed")
    assert records == computed
    assert (manifest.fingerprint, manifest.counts, manifest.rejected) == (
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
    (one, first), (two, second) = records_by_id(tmp_path / "one"), records_by_id(tmp_path / "two")
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


def test_rejected_examples_are_rejected_again_and_kept_keys_are_copied(
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


def test_a_run_that_died_is_resumed_only_with_the_same_base(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "a" / "s-0", payloads[:5])
    assert extract("a", "one").status == 0
    for shard in range(1, 4):
        write_records(tmp_path / "a" / f"s-{shard}", payloads[10 * shard - 5 : 10 * shard + 5])
    base = tmp_path / "one"
    with pytest.raises(RuntimeError, match="the worker died"):
        extract_set(
            tiny.paths, tmp_path / "a" / "*", tmp_path / "two", kind=dying_at(3), base=str(base)
        )
    files_done = list((tmp_path / "two").glob("finished-*"))
    assert len(files_done) == 2
    outcome = extract("a", "two", f"--base={base}")
    assert outcome.status == 0
    assert counters.snapshot()["examples-reused"] == 20
    assert counters.snapshot()["examples-unchanged"] == 5
    assert_as_computed(extract, tmp_path, "a", "two")
    # What was left to extract beside one base is not all that there is without it.
    manifest = manifests.read(str(tmp_path / "two"), FeatureManifest, "features")
    assert (
        read_finished(
            str(tmp_path / "two"),
            manifest.fingerprint,
            InputFile(0, str(tmp_path / "a" / "s-0"), "s-0", 1),
        )
        is None
    )


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


def test_examples_are_matched_in_several_buckets(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    payloads = tiny.payloads()
    write_records(tmp_path / "a" / "s-0", payloads[:30])
    assert extract("a", "one").status == 0
    write_records(tmp_path / "a" / "s-1", payloads[30:])
    extract_set(
        tiny.paths,
        tmp_path / "a" / "*",
        tmp_path / "two",
        base=str(tmp_path / "one"),
        tuning=ExtractionTuning(records_per_bucket=4),
    )
    assert counters.snapshot()["examples-unchanged"] == 30
    assert counters.snapshot()["examples-extracted"] == 10
    assert_as_computed(extract, tmp_path, "a", "two")


def test_reading_extracting_and_writing_stay_one_stage_and_no_feature_is_grouped(
    extract: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "a" / "s-0", tiny.payloads())
    assert extract("a", "one").status == 0
    pipeline = beam.Pipeline()
    pipeline | "Extract" >> stage_one(
        tiny.paths, tmp_path / "a" / "*", tmp_path / "two", base=str(tmp_path / "one")
    )
    graph = pipeline.to_runner_api()
    _, stages = fn_runner.FnApiRunner().create_stages(graph)
    (stage,) = (
        fused
        for fused in ({transform.unique_name for transform in stage.transforms} for stage in stages)
        if any("Extract/ComputeFeatureSet/ReadExamples" in name for name in fused)
    )
    for part in ("ExtractFeatures/RunCheckpoints", "WriteFeatures/WriteFiles"):
        assert any(f"Extract/ComputeFeatureSet/{part}" in name for name in stage), part
    grouped = {
        transform.unique_name.split("FindUnchanged/")[1].split("/")[0]
        for transform in graph.components.transforms.values()
        if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn
        and "FindUnchanged/" in transform.unique_name
    }
    # Names of files, keys of records, and indices of records.
    assert grouped == {"SpreadBaseFiles", "GroupKeys", "GroupByBaseFile", "GroupByFile"}
