"""What flags name, found and checked before any work: every mistake is one clear line and exit
status 2.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import keras
import pytest

from pipeline.flags import parser
from pipeline.preparation.configs import from_flags
from tests.conftest import CLASSES, RATES, SHAPE, Outcome, Tiny, build_tiny, example, write_records
from transforms.extraction.example_format import choose_batch_size
from transforms.extraction.load_model import find_checkpoints, load_model
from transforms.models.config import ModelConfig
from transforms.storage import manifests

Run = Callable[..., Outcome]


@pytest.fixture
def examples(tiny: Tiny, tmp_path: pathlib.Path) -> pathlib.Path:
    return write_records(tmp_path / "examples", tiny.payloads()[:4])


@pytest.fixture
def features(
    tracin: Run, tiny: Tiny, examples: pathlib.Path, tmp_path: pathlib.Path
) -> Callable[..., Outcome]:
    """Runs `tracin features` with flags in place of the usual ones."""

    def run(**flags: Any) -> Outcome:
        given = {
            "examples": examples,
            "checkpoints": tiny.glob,
            "output": tmp_path / "out",
            **flags,
        }
        return tracin("features", *(f"--{flag}={value}" for flag, value in given.items()))

    return run


@pytest.fixture
def influence(
    tracin: Run, tiny: Tiny, examples: pathlib.Path, tmp_path: pathlib.Path
) -> Callable[..., Outcome]:
    """Runs `tracin influence` likewise."""

    def run(**flags: Any) -> Outcome:
        given = {
            "train_examples": examples,
            "test_examples": examples,
            "checkpoints": tiny.glob,
            "output": tmp_path / "out",
            **flags,
        }
        return tracin("influence", *(f"--{flag}={value}" for flag, value in given.items()))

    return run


def assert_told(outcome: Outcome, *parts: str) -> None:
    """Nothing was started, and one line says why."""
    assert outcome.status == 2, outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def save(
    path: pathlib.Path,
    *layers: Any,
    rate: float = 0.1,
    loss: Any = "sparse_categorical_crossentropy",
) -> pathlib.Path:
    """A checkpoint of a network of these layers over the tiny images."""
    model = keras.Sequential([keras.layers.Input(SHAPE), *layers])
    model.compile(keras.optimizers.SGD(rate), loss)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return path


# Examples


def test_a_glob_without_files_is_told(
    features: Run, influence: Run, tmp_path: pathlib.Path
) -> None:
    assert_told(
        features(examples=tmp_path / "nothing-*"),
        "tracin features:",
        "--examples=",
        "nothing-*",
        "matches no file",
    )
    assert_told(
        influence(test_examples=tmp_path / "nothing-*"), "--test_examples=", "matches no file"
    )
    assert_told(
        influence(train_examples=tmp_path / "nothing-*"), "--train_examples=", "matches no file"
    )


def test_a_directory_instead_of_a_glob_is_told(features: Run, examples: pathlib.Path) -> None:
    assert_told(features(examples=examples.parent), "--examples=", "matches no file")


def test_globs_whose_files_would_share_ids_are_told(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    for name in ("x", "y"):
        write_records(tmp_path / name / "a", tiny.payloads()[:1])
    assert_told(
        features(examples=f"{tmp_path}/x/*,{tmp_path}/y/*"),
        f"{tmp_path}/x/a",
        f"{tmp_path}/y/a",
        "same ids",
    )


@pytest.mark.parametrize(
    ("flag", "keys"),
    [("input_keys", "pixels"), ("label_key", "class"), ("id_key", "uuid")],
    ids=["input_keys", "label_key", "id_key"],
)
def test_a_wrong_key_is_told_with_the_keys_that_are_there(
    features: Run, flag: str, keys: str
) -> None:
    assert_told(features(**{flag: keys}), f"no key '{keys}'", "id, image, label", f"--{flag}")


def test_a_wrong_key_to_keep_is_told_with_the_keys_that_are_there(features: Run) -> None:
    assert_told(features(keep_keys="city"), "no key 'city'", "id, image, label", "--keep_keys")


@pytest.mark.parametrize("part", ["test", "train"])
def test_a_set_without_labels_is_told_the_flag_of_this_command(
    features: Run, influence: Run, tiny: Tiny, tmp_path: pathlib.Path, part: str
) -> None:
    unlabelled = write_records(tmp_path / "unlabelled", [example(image=tiny.images[0])])
    assert_told(features(examples=unlabelled), "--labels=predicted")
    assert_told(
        influence(**{f"{part}_examples": unlabelled}),
        f"--{part}_examples",
        f"--{part}_labels=predicted",
    )


def test_the_number_of_input_keys_must_be_the_models(features: Run) -> None:
    assert_told(features(input_keys="image,other"), "--input_keys", "2 keys", "1 inputs")


def test_a_key_that_a_record_needs_cannot_be_kept(features: Run) -> None:
    assert_told(features(keep_keys="activations"), "--keep_keys", "activations")


def test_a_parsing_function_that_cannot_be_imported_is_told(features: Run) -> None:
    assert_told(
        features(parse_fn="no_such_module:parse"),
        "--parse_fn='no_such_module:parse'",
        "module:function",
    )


@pytest.mark.parametrize(
    ("flags", "detail"),
    [
        ({"label_key": "id"}, "is not numbers"),
        ({"input_keys": "label"}, "has 1 numbers"),
        ({"input_keys": "id"}, "neither PNG nor JPEG"),
    ],
)
def test_a_flag_that_makes_every_record_unusable_is_told_at_once(
    features: Run, flags: dict[str, str], detail: str
) -> None:
    assert_told(
        features(**flags),
        "--examples: none of the first 4 records of",
        "can be used; the first:",
        detail,
    )


def test_records_that_are_no_examples_are_told_at_once(
    features: Run, tmp_path: pathlib.Path
) -> None:
    path = write_records(tmp_path / "raw", [b"\xffraw bytes"])
    assert_told(features(examples=path), "none of the first 1 records", "not a tf.train.Example")


def test_an_empty_file_is_warned_of(
    features: Run, examples: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    write_records(tmp_path / "some" / "a", [])
    outcome = features(examples=tmp_path / "some" / "*")
    assert outcome.status == 0
    assert f"warning: --examples: {tmp_path}/some/a is empty" in outcome.err


def test_a_function_beside_the_person_is_found(
    features: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "parsing_beside.py").write_text(
        "def parse(record):\n    return {'image': [0.0] * 16, 'label': 1}\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    assert features(parse_fn="parsing_beside:parse").status == 0


# Checkpoints


def test_a_checkpoint_that_is_named_twice_is_told(features: Run, tiny: Tiny) -> None:
    assert_told(
        features(checkpoints=f"{tiny.paths[0]},{tiny.paths[0]}"), "--checkpoints names", "twice"
    )


def test_a_glob_without_checkpoints_is_told(features: Run, tmp_path: pathlib.Path) -> None:
    assert_told(
        features(checkpoints=tmp_path / "none-*.keras"),
        "--checkpoints=",
        "none-*.keras",
        "matches no checkpoint",
    )
    assert_told(features(checkpoints=","), "--checkpoints is empty")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_told_by_name(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path, share: float
) -> None:
    data = tiny.paths[1].read_bytes()
    cut = tmp_path / "cut.keras"
    cut.write_bytes(data[: int(len(data) * share)])
    assert_told(features(checkpoints=f"{tiny.paths[0]},{cut}"), str(cut), "cut off or damaged")


def test_a_damaged_checkpoint_is_told_by_name(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    data = bytearray(tiny.paths[1].read_bytes())
    data[data.index(b"\x89HDF") + 3000] ^= 0xFF
    bad = tmp_path / "bad.keras"
    bad.write_bytes(data)
    assert_told(features(checkpoints=bad), str(bad), "cut off or damaged")


def test_checkpoints_of_different_shapes_are_told(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path
) -> None:
    other = build_tiny(softmax=False, units=9)
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    other.save(tmp_path / "other.keras")
    assert_told(
        features(checkpoints=f"{tiny.paths[0]},{tmp_path}/other.keras"),
        "other.keras",
        str(tiny.paths[0]),
        "6",
        "9",
    )


def test_a_model_without_a_dense_layer_is_told(features: Run, tmp_path: pathlib.Path) -> None:
    layers = keras.layers
    path = save(tmp_path / "a.keras", layers.Conv2D(CLASSES, 4), layers.Flatten(), layers.Softmax())
    assert_told(features(checkpoints=path), str(path), "Conv2D", "Dense")


def test_a_layer_after_the_last_dense_one_is_told_by_name(
    features: Run, tmp_path: pathlib.Path
) -> None:
    layers = keras.layers
    path = save(
        tmp_path / "a.keras",
        layers.Flatten(),
        layers.Dense(CLASSES),
        layers.BatchNormalization(name="afterwards"),
        layers.Softmax(),
    )
    assert_told(features(checkpoints=path), str(path), "afterwards")


def test_a_probability_loss_on_logits_is_told(features: Run, tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.keras", keras.layers.Flatten(), keras.layers.Dense(CLASSES))
    assert_told(features(checkpoints=path), str(path), "from_logits")


def test_another_layer_than_the_last_is_told(features: Run) -> None:
    assert_told(features(layer="no_such_layer"), "--layer=no_such_layer", "dense")


# Learning rates


@pytest.mark.parametrize("rates", ["0.1", "0.1,0.2", "1,2,3,4"])
def test_learning_rates_of_another_count_are_told_with_the_checkpoints_order(
    features: Run, rates: str
) -> None:
    assert_told(
        features(learning_rates=rates),
        "--learning_rates",
        "3 checkpoints (epoch-1.keras, epoch-2.keras, epoch-10.keras)",
    )


@pytest.mark.parametrize("rate", ["0", "-0.1", "nan", "inf"])
def test_a_learning_rate_that_cannot_weigh_is_told(
    features: Run, influence: Run, rate: str
) -> None:
    for command in (features, influence):
        assert_told(
            command(learning_rates=f"0.1,{rate},0.1"),
            "learning rate of epoch-2.keras",
            "--learning_rates",
        )


def test_a_rate_that_decayed_to_zero_stops_scoring_and_not_extraction(
    features: Run, influence: Run, tmp_path: pathlib.Path
) -> None:
    path = save(
        tmp_path / "zero.keras",
        keras.layers.Flatten(),
        keras.layers.Dense(CLASSES, activation="softmax"),
        rate=0.0,
    )
    assert_told(influence(checkpoints=path), "zero.keras is 0", "--learning_rates")
    outcome = features(checkpoints=path)
    assert outcome.status == 0, outcome.err


def test_a_checkpoint_that_knows_no_rate_stops_scoring_and_not_extraction(
    features: Run, influence: Run, tmp_path: pathlib.Path
) -> None:
    build_tiny(softmax=True).save(tmp_path / "bare.keras")
    flags = {"checkpoints": tmp_path / "bare.keras", "loss": "sparse_categorical_crossentropy"}
    assert_told(influence(**flags), "no learning rate is known for bare.keras", "--learning_rates")
    outcome = features(**flags)
    assert outcome.status == 0, outcome.err
    assert "no learning rate (it was saved without an optimizer)" in outcome.out


# The output, and Beam's flags


def test_an_output_that_cannot_be_written_is_told_before_any_work(
    features: Run, influence: Run, examples: pathlib.Path
) -> None:
    for command in (features, influence):
        assert_told(
            command(output=examples / "below" / "a" / "file"), "--output=", "cannot be written"
        )


def test_an_output_that_is_a_file_is_told(features: Run, examples: pathlib.Path) -> None:
    before = examples.read_bytes()
    assert_told(features(output=examples), "--output=", "is a file, expected a directory")
    assert examples.read_bytes() == before


def test_a_damaged_manifest_in_the_output_is_told(features: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / manifests.FILE_NAME).write_text("{")
    assert_told(features(), "--output", manifests.FILE_NAME, "remove the file")
    # What is not ours is not overwritten either.
    assert_told(features(overwrite="true"), "remove the file")


def test_a_flag_that_neither_knows_is_told(features: Run) -> None:
    assert_told(features(number_of_wrokers=3), "unknown flag --number_of_wrokers=3", "Apache Beam")


def test_a_word_that_is_no_flag_hints_at_unquoted_globs(tracin: Callable[..., Outcome]) -> None:
    outcome = tracin("features", "--examples=a-0", "a-1", "--output=o", "--checkpoints=c")
    assert_told(outcome, "unexpected word 'a-1'", "globs are quoted")


@pytest.mark.parametrize("output", ["", "out*", "out[1]"])
def test_an_output_that_is_no_directory_name_is_told(
    tracin: Callable[..., Outcome], output: str
) -> None:
    assert_told(
        tracin("features", "--examples=a", f"--output={output}", "--checkpoints=c"),
        "--output: expected a directory",
        repr(output),
    )


# What was found


@pytest.mark.parametrize(
    ("kept", "order"),
    [(True, ["epoch-10", "epoch-1", "epoch-2"]), (False, ["epoch-1", "epoch-2", "epoch-10"])],
)
def test_a_list_keeps_its_order_and_a_glob_takes_that_of_training(
    tiny: Tiny, kept: bool, order: list[str]
) -> None:

    listed = ",".join(
        str(tiny.directory / f"{name}.keras") for name in ("epoch-10", "epoch-1", "epoch-2")
    )
    args, _ = parser.parse(
        "features", ["--examples=e", "--output=o", f"--checkpoints={listed if kept else tiny.glob}"]
    )
    prepared = load_model(from_flags(ModelConfig, args), rates_needed=True)
    assert [pathlib.Path(info.path).stem for info in prepared.infos] == order
    by_name = dict(zip(("epoch-1", "epoch-2", "epoch-10"), RATES, strict=True))
    assert list(prepared.learning_rates) == [by_name[name] for name in order]


def test_checkpoints_are_found_by_glob_without_a_directory(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.directory)
    paths, listed = find_checkpoints("epoch-1*.keras")
    assert (
        sorted(pathlib.Path(path).name for path in paths) == ["epoch-1.keras", "epoch-10.keras"]
        and not listed
    )
    assert find_checkpoints("epoch-2.keras") == (["epoch-2.keras"], True)


def test_the_checkpoints_and_what_was_written_are_told(features: Run) -> None:
    outcome = features()
    assert outcome.status == 0
    assert (
        "3 checkpoints" in outcome.out
        and "epoch-10.keras  step 12  learning rate 0.25" in outcome.out
    )
    assert "4 examples" in outcome.out


def test_a_batch_fits_into_its_share_of_memory() -> None:
    from transforms.examples.format import InputSpec

    assert choose_batch_size([InputSpec("a", SHAPE, "float32")]) == 256
    assert choose_batch_size([InputSpec("a", (224, 224, 3), "float32")]) == 27
    assert choose_batch_size([InputSpec("a", (10**5, 10**4), "float32")]) == 1
    # Of strings nobody knows how long they are.
    assert choose_batch_size([InputSpec("a", (), "string")]) == 256
    # 512 positions of 6 checkpoints, 10 outputs and 768 units.
    assert choose_batch_size([InputSpec("a", (512,), "int32")], 4 * 512 * 6 * 778) == 7


# Models of several inputs and outputs, and models of code


def several(directory: pathlib.Path) -> pathlib.Path:
    """A checkpoint of a model of two inputs and two outputs, by name."""
    layers = keras.layers
    width, height = keras.Input((2,), name="width"), keras.Input((3,), name="height")
    h = layers.Dense(4)(layers.Concatenate()([width, height]))
    model = keras.Model(
        {"width": width, "height": height}, {"kind": layers.Dense(3)(h), "size": layers.Dense(1)(h)}
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"},
    )
    model.save(directory / "several.keras")
    return directory / "several.keras"


def test_keys_of_several_inputs_are_their_names_and_the_output_is_part_of_the_fingerprint(
    features: Run, tmp_path: pathlib.Path
) -> None:
    path = several(tmp_path)
    named = write_records(
        tmp_path / "named",
        [example(width=[0.5] * 2, height=[1.0] * 3, kind=i, size=[0.5]) for i in range(3)],
    )
    outcome = features(
        examples=named,
        checkpoints=path,
        label_key="kind",
        output_name="kind",
        output=tmp_path / "a",
    )
    assert outcome.status == 0, outcome.err
    assert "output 'kind', last dense layer" in outcome.out
    written = manifests.read(str(tmp_path / "a"), manifests.FeatureManifest, "output")
    assert (written.settings["input_keys"], written.settings["output"], written.outputs) == (
        ["height", "width"],
        "kind",
        3,
    )
    # Named by hand it is the same run.
    again = features(
        examples=named,
        checkpoints=path,
        label_key="kind",
        output_name="kind",
        output=tmp_path / "a",
        input_keys="height,width",
    )
    assert again.status == 0 and "nothing to do" in again.out
    outcome = features(
        examples=named,
        checkpoints=path,
        label_key="size",
        output_name="size",
        output=tmp_path / "b",
    )
    assert outcome.status == 0, outcome.err
    other = manifests.read(str(tmp_path / "b"), manifests.FeatureManifest, "output")
    assert (other.task, other.outputs) == ("regression", 1)
    assert other.model_fingerprint != written.model_fingerprint
    assert_told(
        features(examples=named, checkpoints=path, label_key="kind", output=tmp_path / "c"),
        "2 outputs (kind, size)",
        "--output_name",
    )
    assert_told(
        features(checkpoints=path, output_name="kind", output=tmp_path / "c"),
        "no key 'height'",
        "--input_keys",
    )


def test_one_output_leaves_the_fingerprint_as_it_was(tiny: Tiny) -> None:

    words = ["--examples=e", "--output=o", f"--checkpoints={tiny.glob}"]
    plain = load_model(from_flags(ModelConfig, parser.parse("features", words)[0]))
    assert set(plain.settings) == {"model", "checkpoints", "layer", "loss", "include_bias"}
    words.append(f"--output_name={plain.loaded.layer}")
    named = load_model(from_flags(ModelConfig, parser.parse("features", words)[0]))
    assert named.fingerprint == plain.fingerprint and named.settings == plain.settings


CODE = """
import keras, tensorflow as tf

@keras.saving.register_keras_serializable("test_inputs")
class Net(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat, self.end = keras.layers.Flatten(), keras.layers.Dense(3)
        self.inner = keras.layers.Dense(4, activation="relu")

    def call(self, inputs):
        return tf.nn.softmax(self.end(self.inner(self.flat(tf.math.asinh(inputs)))))

def build():
    model = Net()
    model(tf.zeros([1, 4, 4, 1]))
    return model
"""


def test_a_model_of_code_runs_through_the_pipeline(
    features: Run, tiny: Tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from transforms.storage import filesystems
    from transforms.storage.records import tfrecords
    from transforms.storage.records.feature_record import decode

    (tmp_path / "code_of_a_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    import code_of_a_net  # type: ignore[import-not-found]  # the test has written it

    model = code_of_a_net.build()
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(tiny.images, tiny.labels, verbose=0)
    model.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "net.weights.h5")
    loss = "sparse_categorical_crossentropy"
    for name, flags in {
        "a": {"checkpoints": tmp_path / "net.keras", "import": "code_of_a_net"},
        "b": {
            "checkpoints": tmp_path / "net.weights.h5",
            "model": "code_of_a_net:build",
            "loss": loss,
        },
    }.items():
        outcome = features(output=tmp_path / name, **flags)
        assert outcome.status == 0, outcome.err
        found = manifests.read(str(tmp_path / name), manifests.FeatureManifest, "output")
        payloads = [
            payload
            for file in found.files
            for payload in tfrecords.split_frames(
                filesystems.read_verified(str(tmp_path / name), file)
            )
        ]
        records = decode(payloads, 1, found.outputs, found.units, found.integer_labels)
        probabilities = model.predict(tiny.images[:4], verbose=0)
        expected = probabilities - np.eye(3)[tiny.labels[:4]]
        np.testing.assert_allclose(records.loss_grads[:, 0], expected, rtol=1e-4, atol=1e-6)
        hidden = model.inner(model.flat(np.arcsinh(tiny.images[:4])))
        np.testing.assert_allclose(records.activations[:, 0, :-1], hidden, rtol=1e-5, atol=1e-6)
