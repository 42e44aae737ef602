"""`tracin export`, `tracin index` and `tracin search`: what they print, refuse and leave alone, and
rows that are those of `tracin score`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.running import progress
from tests.conftest import Outcome
from tests.synthetic import draw, write_set
from tests.vector_sets import build_index, vectors_in
from transforms.influence.rows import read_rows
from transforms.runtime import counters
from transforms.storage import manifests
from transforms.vectors.config import ProjectionConfig

Run = Callable[..., Outcome]
K = 5


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("train"), [150, 0, 130], 1, "train-")


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_set(tmp_path_factory.mktemp("test"), [30, 11], 2, "test-")


def done(outcome: Outcome) -> Outcome:
    assert outcome.status == 0, outcome.err
    return outcome


def test_an_export_is_summarised(tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path):
    words = ("export", f"--features={train}", f"--output={tmp_path}/v", "--dimensions=12")
    outcome = done(tracin(*words, "--formats=npy,parquet"))
    assert "280 vectors of 12 numbers (auto:" in outcome.out
    assert "(npy, parquet)" in outcome.out and vectors_in(tmp_path / "v").shape == (280, 12)


def test_absurd_sizes_are_refused_unless_asked_for(tracin: Run, tmp_path: pathlib.Path):
    features = draw(np.random.default_rng(6), 3, 2, 256, 257)
    large = write_set(tmp_path / "set", [3], 3, "x-", features=features, outputs=256, units=257)
    words = ("export", f"--features={large}", f"--output={tmp_path}/v", "--projection=exact")
    outcome = tracin(*words)
    assert outcome.status == 2
    assert "vectors of 131,584 numbers take 0.5 MB an example, 0.0 GB in all" in outcome.err
    assert "choose fewer by --projection=auto and --dimensions" in outcome.err
    assert "--allow_large_vectors" in outcome.err and not (tmp_path / "v").exists()
    assert done(tracin(*words, "--allow_large_vectors")).out
    assert vectors_in(tmp_path / "v").shape == (3, 131_584)


def test_worker_processes_make_the_same_projection(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path
):
    several = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    for name, flags in (("one", ()), ("two", several)):
        done(
            tracin(
                "export",
                f"--features={train}",
                f"--output={tmp_path}/{name}",
                "--dimensions=10",
                *flags,
            )
        )
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.np[yz]")}
        for name in ("one", "two")
    )
    assert one == two
    assert vectors_in(tmp_path / "one").shape == (280, 10)


@pytest.mark.parametrize("normalize", ["none", "cosine", "relatif"])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_search_that_looks_everywhere_gives_the_rows_of_score(
    tracin: Run,
    tmp_path: pathlib.Path,
    train: pathlib.Path,
    test_set: pathlib.Path,
    normalize: str,
    kind: str,
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    config = ProjectionConfig("exact", normalize=normalize)
    build_index(train, tmp_path / "ix", config, kind)
    assert len(list((tmp_path / "ix").glob("index-*.faiss"))) == 3
    effort = {"flat": [], "ivf": ["--nprobe=1000"], "hnsw": ["--ef_search=1000"]}
    everywhere = ("--oversampling=60", *effort[kind], "--recall_sample=7")
    for flag in {"--nprobe=4", "--ef_search=9"} - {
        one.split("=")[0] + ("=4" if "nprobe" in one else "=9") for one in effort[kind]
    }:
        other = tracin(
            "search", f"--index={tmp_path}/ix", *sets, f"--output={tmp_path}/found", flag
        )
        assert other.status == 2 and f"is of {kind}: leave it out" in other.err
    outcome = done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--output={tmp_path}/found",
            f"--k={K}",
            *everywhere,
        )
    )
    done(
        tracin("score", *sets, f"--output={tmp_path}/exact", f"--k={K}", f"--normalize={normalize}")
    )
    for name in ("influence-00000.jsonl", "influence-00000.parquet"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "exact" / name).read_bytes()
    told = json.loads((tmp_path / "found" / "recall.json").read_text())
    assert told == {
        "k": K,
        "tests": 7,
        "proponents": {"recall": 1, "lowest": 1},
        "opponents": {"recall": 1, "lowest": 1},
    }
    assert "found 100.00 % of the 5 strongest proponents" in outcome.out


def test_scores_are_exact_and_recall_is_true_where_the_index_misses(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    build_index(train, tmp_path / "ix", ProjectionConfig("sketch", 3))
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--output={tmp_path}/found",
            "--k=5",
            "--oversampling=2",
        )
    )
    done(tracin("score", *sets, f"--output={tmp_path}/exact", "--k=5"))
    done(tracin("score", *sets, f"--output={tmp_path}/all", "--k=280"))
    found, exact, everything = (
        read_rows(str(tmp_path / name)) for name in ("found", "exact", "all")
    )
    shares: dict[str, list[float]] = {"proponents": [], "opponents": []}
    for row, best, whole in zip(found, exact, everything, strict=True):
        for sign, listed in shares.items():
            scores = {one["train_id"]: one["score"] for one in whole[sign]}
            assert all(scores[one["train_id"]] == one["score"] for one in row[sign])
            assert [abs(one["score"]) for one in row[sign]] == sorted(
                (abs(one["score"]) for one in row[sign]), reverse=True
            )
            wanted = {one["train_id"] for one in best[sign]}
            if wanted:
                listed.append(len(wanted & {one["train_id"] for one in row[sign]}) / len(wanted))
    told = json.loads((tmp_path / "found" / "recall.json").read_text())
    for sign, listed in shares.items():
        assert 0.1 < told[sign]["recall"] < 0.999
        assert told[sign]["recall"] == pytest.approx(np.mean(listed))
        assert told[sign]["lowest"] == min(listed)


def test_only_some_test_examples(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(tracin("index", sets[0], f"--output={tmp_path}/ix", "--projection=exact"))
    done(tracin("score", *sets, f"--output={tmp_path}/exact", "--k=5"))
    few = (
        f"--index={tmp_path}/ix",
        "--test_ids=test-00040,test-00003",
        "--k=5",
        "--oversampling=60",
    )
    done(tracin("search", *sets, *few, f"--output={tmp_path}/found"))
    exact = {row["test_id"]: row for row in read_rows(str(tmp_path / "exact"))}
    assert read_rows(str(tmp_path / "found")) == [exact["test-00003"], exact["test-00040"]]
    unknown = tracin(
        "search",
        *sets,
        f"--index={tmp_path}/ix",
        "--test_ids=test-00003,nobody",
        f"--output={tmp_path}/unknown",
    )
    assert unknown.status == 2 and "'nobody' not in" in unknown.err
    assert not (tmp_path / "unknown").exists()
    nobody = tracin(
        "search", *sets, f"--index={tmp_path}/ix", "--test_ids=", f"--output={tmp_path}/unknown"
    )
    assert nobody.status == 2 and "expected ids separated by commas, found ''" in nobody.err


def test_complete_directories_are_no_work(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    commands = {
        "v": ("export", f"--features={train}", "--dimensions=8"),
        "ix": ("index", sets[0], "--dimensions=8"),
        "found": ("search", f"--index={tmp_path}/ix", *sets),
    }
    for name, words in commands.items():
        done(tracin(*words, f"--output={tmp_path}/{name}"))
        assert "nothing to do" in done(tracin(*words, f"--output={tmp_path}/{name}")).out
    other = tracin("index", sets[0], "--dimensions=9", f"--output={tmp_path}/ix")
    assert other.status == 2 and "dimensions was 8, is 9" in other.err
    done(
        tracin(
            "search",
            *commands["found"][1:],
            "--overwrite",
            "--recall_sample=3",
            f"--output={tmp_path}/found",
        )
    )
    assert json.loads((tmp_path / "found" / "recall.json").read_text())["tests"] == 3
    written = manifests.read_kind(f"{tmp_path}/found", "output", "influence")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {
        "manifest.json",
        *(file.name for file in written.files),
    }


def test_vectors_of_zero_gradients(tracin: Run, tmp_path: pathlib.Path):
    features = draw(np.random.default_rng(4), 20, 2, 3, 6)
    features.loss_grads[5:9] = 0
    some = write_set(
        tmp_path / "some",
        [20],
        3,
        "x-",
        features=dataclasses.replace(
            features, loss_grad_norms=np.linalg.norm(features.loss_grads, axis=2)
        ),
    )
    assert (
        "4 of them zero"
        in done(
            tracin("export", f"--features={some}", f"--output={tmp_path}/v", "--dimensions=8")
        ).out
    )
    features.loss_grads[:] = 0
    none = write_set(
        tmp_path / "none",
        [20],
        3,
        "x-",
        features=dataclasses.replace(features, loss_grad_norms=np.zeros((20, 2))),
    )
    outcome = tracin(
        "index", f"--train_features={none}", f"--output={tmp_path}/ix", "--dimensions=8"
    )
    assert outcome.status == 1 and "all 20 vectors are zero" in outcome.err
    assert not (tmp_path / "ix" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dimensions=37",), "--dimensions=37: 37 numbers are more than the 36 of exact vectors"),
        (("--dimensions=1", "--projection=random"), "need one for each of the 2 checkpoints"),
        (("--dimensions=0",), "expected a whole number of at least 1"),
        (("--formats=csv",), "expected some of npy, parquet, tfrecord, faiss, vertex, found 'csv'"),
        (("--learning_rates=0.1",), "--learning_rates has 1 numbers"),
        (
            ("--projection_of=/nowhere", "--dimensions=8"),
            "--projection_of and --dimensions exclude each other",
        ),
        (
            ("--projection_of=/nowhere",),
            "--projection_of='/nowhere' holds no complete set, expected vectors or index",
        ),
    ],
)
def test_bad_flags_are_told_at_once(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, words: tuple[str, ...], message: str
):
    outcome = tracin("export", f"--features={train}", f"--output={tmp_path}/v", *words)
    assert outcome.status == 2 and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "v").exists()


def test_features_of_another_model_are_refused(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    other = write_set(tmp_path / "other", [30], 5, "other-", model_fingerprint="another")
    again = write_set(tmp_path / "again", [30], 5, "again-")
    empty = write_set(tmp_path / "empty", [0], 5, "empty-")
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    cases = {
        "another model than those of": (
            "export",
            f"--features={other}",
            f"--projection_of={tmp_path}/ix",
        ),
        "was built from another feature set": (
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={again}",
            f"--test_features={test_set}",
        ),
        "features of different models": (
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={train}",
            f"--test_features={other}",
        ),
        "holds no example": ("index", f"--train_features={empty}"),
        "expected index": (
            "search",
            f"--index={train}",
            f"--train_features={train}",
            f"--test_features={test_set}",
        ),
    }
    for message, words in cases.items():
        outcome = tracin(*words, f"--output={tmp_path}/out")
        assert outcome.status == 2 and message in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


def test_what_is_missing_is_told_wherever_the_result_is_shown(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin("index", sets[0], f"--output={tmp_path}/ix", "--projection=sketch", "--dimensions=3")
    )
    for name, sample, told in (
        ("some", 5, "by the exact answer for 5 test examples"),
        ("none", 0, "was not measured"),
    ):
        words = (
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            f"--recall_sample={sample}",
            f"--output={tmp_path}/{name}",
        )
        assert told in done(tracin(*words)).out
        assert told in done(tracin("show", f"{tmp_path}/{name}")).out
        assert "looked for by an index" in (tmp_path / name / "report.html").read_text()


def test_progress_ends_where_it_was_to_end(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    def assert_complete(stages) -> None:
        counts = counters.snapshot()
        for stage in stages:
            assert counts[stage.done] == counts[stage.total] > 0, stage.title

    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    assert_complete([*progress.FITTING, progress.PROJECTING])
    sets = (f"--train_features={train}", f"--test_features={test_set}")
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            *sets,
            "--recall_sample=0",
            f"--output={tmp_path}/found",
        )
    )
    assert_complete([progress.SEARCHING])


def test_an_empty_test_set_has_no_rows(tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path):
    empty = write_set(tmp_path / "empty", [0], 5, "empty-")
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    done(
        tracin(
            "search",
            f"--index={tmp_path}/ix",
            f"--train_features={train}",
            f"--test_features={empty}",
            f"--output={tmp_path}/found",
        )
    )
    assert read_rows(str(tmp_path / "found")) == []


def test_without_faiss_the_extra_is_named(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    for words in (
        ("index", f"--train_features={train}"),
        ("export", f"--features={train}", "--formats=faiss"),
    ):
        outcome = tracin(*words, f"--output={tmp_path}/out")
        assert outcome.status == 2 and "pip install 'tracin-beam[neighbours]'" in outcome.err
    done(tracin("export", f"--features={train}", f"--output={tmp_path}/v", "--dimensions=8"))


def test_a_damaged_index_is_told(
    tracin: Run, tmp_path: pathlib.Path, train: pathlib.Path, test_set: pathlib.Path
):
    done(tracin("index", f"--train_features={train}", f"--output={tmp_path}/ix", "--dimensions=8"))
    path = tmp_path / "ix" / "index-00000.faiss"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    outcome = tracin(
        "search",
        f"--index={tmp_path}/ix",
        f"--train_features={train}",
        f"--test_features={test_set}",
        f"--output={tmp_path}/f",
    )
    assert outcome.status == 1 and "index-00000.faiss is damaged" in outcome.err
