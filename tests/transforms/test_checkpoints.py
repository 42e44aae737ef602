"""Checkpoints: what is read from them, that every variable is bound, and what the last dense layer may look like."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from transforms.checkpoints import CheckpointInfo, Checkpoints, InputSpec, ModelSpec, group_paths, inspect, load, natural_key, order
from transforms.errors import InputError

L = keras.layers
N, D_IN, C = 16, 6, 3


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(loc=1, size=(N, D_IN)).astype(np.float32)


@pytest.fixture
def y(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, C, N)


def make_model() -> keras.Model:
    """A model with everything that inference mode must get right: dropout, moved batch statistics, a bias."""
    return keras.Sequential(
        [
            keras.Input((D_IN,), name="pixels"),
            L.Dense(8, activation="relu", name="hidden"),
            L.BatchNormalization(momentum=0.5, name="norm"),
            L.Dropout(0.5, name="drop"),
            L.Dense(C, bias_initializer="normal", name="head"),
        ],
        name="small",
    )


def compile_model(model: keras.Model, optimizer: Any = None) -> keras.Model:
    model.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9) if optimizer is None else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


@pytest.fixture
def trained(x: np.ndarray, y: np.ndarray) -> keras.Model:
    model = compile_model(make_model())
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    return model


def save(model: keras.Model, path: Path) -> str:
    model.save(path)
    return str(path)


def logits_of(checkpoints: Checkpoints, x: Any, t: int = 0) -> np.ndarray:
    return checkpoints.logits_and_activations(t, x)[0].numpy()


# Files and order


def test_group_paths() -> None:
    paths = [
        "gs://b/checkpoint",
        "gs://b/ckpt-2.data-00000-of-00002",
        "gs://b/ckpt-2.data-00001-of-00002",
        "gs://b/ckpt-2.index",
        "a/m.keras",
        "a/m.weights.h5",
    ]
    assert group_paths(paths) == ["gs://b/ckpt-2", "a/m.keras", "a/m.weights.h5"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/m.h5"], r"a/m.h5 is not a checkpoint; expected a .keras file, a .weights.h5 file, or the .index"),
        (["a/c-1.index"], r"a/c-1 lacks a/c-1.data-\*"),
        (["a/c-1.data-00000-of-00001"], "a/c-1 lacks a/c-1.index"),
    ],
)
def test_group_paths_refuses(paths: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_paths(paths)


def test_order() -> None:
    def info(path: str, step: int | None) -> CheckpointInfo:
        return CheckpointInfo(path, step, 0.1, "", "")

    def paths(infos: list[CheckpointInfo]) -> list[str]:
        return [info.path for info in infos]

    assert sorted(["epoch-10", "epoch-2", "epoch-2b"], key=natural_key) == ["epoch-2", "epoch-2b", "epoch-10"]
    known = [info("a", 30), info("b", 4), info("c", 0)]
    assert paths(order(known, keep=False)) == ["c", "b", "a"]
    assert paths(order(known, keep=True)) == ["a", "b", "c"]
    # One unknown or repeated step makes all of them useless.
    for step in (None, 30):
        assert paths(order([info("e-10", 30), info("e-9", step)], keep=False)) == ["e-9", "e-10"]


# inspect


def test_inspect_every_kind(trained: keras.Model, tmp_path: Path) -> None:
    trained.optimizer.learning_rate.assign(0.0125)  # What ReduceLROnPlateau does.
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(net=trained, optimizer=trained.optimizer).write(str(tmp_path / "ckpt"))
    for name in ("m.keras", "m.weights.h5", "ckpt"):
        info = inspect(str(tmp_path / name))
        assert (info.step, info.learning_rate, info.note) == (8, 0.0125, ""), name
    assert inspect(str(tmp_path / "m.keras")).digest == hashlib.sha256((tmp_path / "m.keras").read_bytes()).hexdigest()
    content = (tmp_path / "ckpt.index").read_bytes() + (tmp_path / "ckpt.data-00000-of-00001").read_bytes()
    assert inspect(str(tmp_path / "ckpt")).digest == hashlib.sha256(content).hexdigest()


def test_inspect_evaluates_a_schedule_at_the_step(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5, 100], [0.5, 0.25, 0.0])
    model = compile_model(make_model(), keras.optimizers.Adam(schedule))
    model.fit(x, y, batch_size=4, verbose=0)
    assert inspect(save(model, tmp_path / "a.keras")).learning_rate == 0.5
    model.fit(x, y, batch_size=4, verbose=0)
    info = inspect(save(model, tmp_path / "b.keras"))
    assert (info.step, info.learning_rate) == (8, 0.25)
    model.save_weights(tmp_path / "b.weights.h5")
    info = inspect(str(tmp_path / "b.weights.h5"))
    assert (info.step, info.learning_rate) == (8, None) and "schedule" in info.note
    tf.train.Checkpoint(model).write(str(tmp_path / "c"))
    info = inspect(str(tmp_path / "c"))
    assert (info.step, info.learning_rate) == (8, None) and "schedule" in info.note


class Unregistered(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.1

    def get_config(self) -> dict[str, Any]:
        return {}


def test_inspect_without_a_rate(tmp_path: Path) -> None:
    bare = make_model()
    info = inspect(save(bare, tmp_path / "bare.keras"))
    assert (info.step, info.learning_rate) == (None, None) and "without an optimizer" in info.note
    bare.save_weights(tmp_path / "bare.weights.h5")
    assert "without an optimizer" in inspect(str(tmp_path / "bare.weights.h5")).note
    info = inspect(save(compile_model(make_model(), keras.optimizers.SGD(Unregistered())), tmp_path / "u.keras"))
    assert (info.step, info.learning_rate) == (0, None) and "Unregistered" in info.note


def test_inspect_looks_through_a_loss_scale_optimizer(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25), initial_scale=2.0)
    model = compile_model(make_model(), optimizer)
    model.fit(x, y, batch_size=4, verbose=0)
    info = inspect(save(model, tmp_path / "m.keras"))
    assert (info.step, info.learning_rate) == (4, 0.25)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "ckpt.index"])
def test_a_cut_off_file_is_named(name: str, trained: keras.Model, tmp_path: Path) -> None:
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    tf.train.Checkpoint(model=trained).write(str(tmp_path / "ckpt"))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    path = str(file).removesuffix(".index")
    with pytest.raises(InputError, match=f"{Path(path).name} cannot be read .* cut off or damaged"):
        inspect(path)
    with pytest.raises(InputError, match=Path(path).name):
        (tmp_path / "small.json").write_text(make_model().to_json())
        load(ModelSpec((path,), model=str(tmp_path / "small.json"), loss="SparseCategoricalCrossentropy(from_logits=True)"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("gone.keras", "gone.weights.h5", "gone"):
        with pytest.raises(InputError, match=f"{name}.* exist"):
            inspect(str(tmp_path / name))


# load


def test_load_gives_logits_and_activations_of_every_checkpoint(trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    first = save(trained, tmp_path / "1.keras")
    expected = [trained.predict(x, verbose=0)]
    trained.fit(x, y, batch_size=4, verbose=0)
    second = save(trained, tmp_path / "2.keras")
    expected.append(trained.predict(x, verbose=0))
    spec = pickle.loads(pickle.dumps(ModelSpec((first, second))))
    checkpoints = load(spec)
    assert weakref.ref(checkpoints)() is checkpoints
    assert (checkpoints.size, checkpoints.layer, checkpoints.outputs, checkpoints.units) == (2, "head", C, 8)
    assert checkpoints.inputs == (InputSpec("pixels", (D_IN,), "float32"),)
    assert checkpoints.loss.description == "SparseCategoricalCrossentropy()"
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    hidden = keras.Model(trained.inputs, trained.get_layer("drop").output)
    for t in range(2):
        np.testing.assert_allclose(logits_of(checkpoints, x, t), expected[t], rtol=1e-5, atol=1e-6)
        traced = tf.function(checkpoints.logits_and_activations)(t, {"pixels": x})
        np.testing.assert_allclose(traced[0], expected[t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(checkpoints.logits_and_activations(1, x)[1], hidden(x, training=False), rtol=1e-5, atol=1e-6)


def test_factored_gradient_is_the_full_one(trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    """δ ⊗ h and δ against the tape on the model in inference mode, example by example."""
    checkpoints = load(ModelSpec((save(trained, tmp_path / "m.keras"),)))
    logits, h = checkpoints.logits_and_activations(0, x)
    delta = checkpoints.loss.loss_grads(logits, y[:, None]).numpy()
    head = trained.get_layer("head")
    assert np.abs(head.bias.numpy()).min() > 1e-4
    for i in range(N):
        with tf.GradientTape() as tape:
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y[i : i + 1], trained(x[i : i + 1], training=False))
        kernel, bias = tape.gradient(value, [head.kernel.value, head.bias.value])
        np.testing.assert_allclose(np.outer(h[i], delta[i]), kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(delta[i], bias, rtol=1e-4, atol=1e-6)


BUILDS: list[keras.Model] = []


def build_small() -> keras.Model:
    return compile_model(make_model())


def build_once() -> keras.Model:
    BUILDS.append(make_model()) if not BUILDS else None
    return BUILDS[0]


def test_weights_files_give_the_same_logits(trained: keras.Model, x: np.ndarray, tmp_path: Path) -> None:
    archive = save(trained, tmp_path / "m.keras")
    expected = logits_of(load(ModelSpec((archive,))), x)
    trained.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(trained.to_json())
    tf.train.Checkpoint(model=trained, optimizer=trained.optimizer).write(str(tmp_path / "with-optimizer"))
    tf.train.Checkpoint(net=trained).save(str(tmp_path / "net"))
    tf.train.Checkpoint(classifier=trained, step=tf.Variable(3)).write(str(tmp_path / "other-name"))
    tf.train.Checkpoint(trained).write(str(tmp_path / "root"))
    for name in ("m.weights.h5", "with-optimizer", "net-1", "other-name", "root"):
        for model in (archive, str(tmp_path / "m.json"), f"{__name__}:build_small"):
            found = load(ModelSpec((str(tmp_path / name),), model=model))
            np.testing.assert_array_equal(logits_of(found, x), expected, err_msg=f"{name} {model}")
            assert found.loss.description == "SparseCategoricalCrossentropy()"


def test_an_adapted_normalization_is_restored(x: np.ndarray, tmp_path: Path) -> None:
    """Its constants are made from its variables, which a TensorFlow restore sets behind its back."""
    norm = L.Normalization()
    norm.adapt(x)
    model = keras.Sequential([keras.Input((D_IN,)), norm, L.Dense(C)])
    model.compile(loss="mse")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    (tmp_path / "m.json").write_text(keras.Sequential([keras.Input((D_IN,)), L.Normalization(), L.Dense(C)]).to_json())
    found = load(ModelSpec((str(tmp_path / "c"),), model=str(tmp_path / "m.json"), loss="mse"))
    np.testing.assert_allclose(logits_of(found, x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_a_value_like_the_mark_counts_as_bound(trained: keras.Model, tmp_path: Path) -> None:
    """A diverged model holds NaN, an integer variable anything."""
    for variable in trained.weights[:2]:
        variable.assign(keras.ops.full(variable.shape, np.nan))
    trained.save_weights(tmp_path / "m.weights.h5")
    load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=f"{__name__}:build_small"))


def test_unbound_variables_are_named(trained: keras.Model, tmp_path: Path) -> None:
    trained.save_weights(tmp_path / "m.weights.h5")
    larger = keras.Sequential([*make_model().layers[:-1], L.Dense(4, name="extra"), L.Dense(C, name="head")])
    larger.build((None, D_IN))
    (tmp_path / "larger.json").write_text(larger.to_json())
    spec = {"model": str(tmp_path / "larger.json"), "loss": "mse"}
    with pytest.raises(InputError, match=r"m.weights.h5.*do(es)? not fit"):
        load(ModelSpec((str(tmp_path / "m.weights.h5"),), **spec))
    root = tf.train.Checkpoint(model=trained)
    root.write(str(tmp_path / "ckpt"))
    with pytest.raises(InputError, match="ckpt"):
        load(ModelSpec((str(tmp_path / "ckpt"),), **spec))
    tf.train.Checkpoint(hidden=trained.get_layer("hidden")).write(str(tmp_path / "part"))
    with pytest.raises(InputError, match=r"part holds no value for .*norm/gamma.* and .* more variables.* under hidden"):
        load(ModelSpec((str(tmp_path / "part"),), model=f"{__name__}:build_small"))


def test_a_checkpoint_of_keras_2_is_recognised(trained: keras.Model, tmp_path: Path) -> None:
    old = tf.train.Checkpoint()
    old.__setattr__("layer_with_weights-0", tf.train.Checkpoint(kernel=tf.Variable(tf.zeros([D_IN, 8]))))
    old.write(str(tmp_path / "old"))
    with pytest.raises(InputError, match="written by Keras 2"):
        load(ModelSpec((str(tmp_path / "old"),), model=f"{__name__}:build_small"))


def test_an_archive_with_a_missing_variable_is_refused(trained: keras.Model, tmp_path: Path) -> None:
    path = Path(save(trained, tmp_path / "m.keras"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(members["model.weights.h5"])
    with h5py.File(content, "r+") as weights:
        del weights["layers/dense_1/vars/1"]
    members["model.weights.h5"] = content.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    with pytest.raises(InputError, match=r"m.keras cannot be loaded"):
        load(ModelSpec((str(path),)))


@keras.saving.register_keras_serializable("test_checkpoints")
class Odd(keras.metrics.Metric):
    def update_state(self, *args: Any, **kwargs: Any) -> None:
        pass

    def result(self) -> float:
        return 0.0


@keras.saving.register_keras_serializable("test_checkpoints")
class Twice(L.Layer):
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


def forget(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(keras.saving.get_custom_objects(), f"test_checkpoints>{name}")


def test_an_unknown_metric_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = make_model()
    model.compile("sgd", "mse", metrics=[Odd()])
    path = save(model, tmp_path / "m.keras")
    forget(monkeypatch, "Odd")
    assert load(ModelSpec((path,))).loss.task == "regression"
    model.save_weights(tmp_path / "m.weights.h5")
    assert load(ModelSpec((str(tmp_path / "m.weights.h5"),), model=path)).loss.task == "regression"


def test_custom_code_is_imported_or_missed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, x: np.ndarray) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), Twice(), L.Dense(C)])
    model.compile(loss="mse")
    path = save(model, tmp_path / "m.keras")
    expected = model.predict(x, verbose=0)
    forget(monkeypatch, "Twice")
    with pytest.raises(InputError, match=r"m.keras needs the custom object .*Twice.*--import"):
        load(ModelSpec((path,)))
    (tmp_path / "mine_for_test.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable('test_checkpoints')\n"
        "class Twice(keras.layers.Layer):\n    def call(self, inputs):\n        return 2 * inputs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load(ModelSpec((path,), imports=("mine_for_test",)))
    np.testing.assert_allclose(logits_of(found, x), expected, rtol=1e-5, atol=1e-6)
    sys.modules.pop("mine_for_test")
    with pytest.raises(InputError, match="--import=not_a_module_at_all cannot be imported"):
        load(ModelSpec((path,), imports=("not_a_module_at_all",)))


def test_a_lambda_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), L.Lambda(lambda v: v + 1), L.Dense(C)])
    path = save(model, tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"Lambda.*safe mode"):
        load(ModelSpec((path,), loss="mse"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(()), "No checkpoint given"),
        (ModelSpec(("m.weights.h5",)), "holds weights alone; pass --model"),
        (ModelSpec(("m.weights.h5",), model="small"), "not an architecture"),
        (ModelSpec(("m.weights.h5",), model="gone.keras"), "gone.keras does not exist"),
        (ModelSpec(("m.weights.h5",), model="m.weights.json"), "does not exist"),
        (ModelSpec(("m.weights.h5",), model=f"{__name__}:nothing"), "has no function nothing"),
        (ModelSpec(("m.weights.h5",), model="sys:getrecursionlimit"), "gives a int, expected a Keras model"),
        (ModelSpec(("m.weights.h5",) * 2, model=f"{__name__}:build_once", loss="mse"), "returned the same model twice"),
        (ModelSpec(("m.keras",), layer="hidden"), "--layer=hidden is not the last dense layer of .*, which is layer head.*hidden, head"),
    ],
)
def test_refused_specs(spec: ModelSpec, message: str, trained: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_differ_are_refused(trained: keras.Model, tmp_path: Path) -> None:
    def model(units: int = 8, classes: int = C, name: str = "head", width: int = D_IN, loss: str = "mse") -> str:
        made = keras.Sequential([keras.Input((width,)), L.Dense(units), L.Dense(classes, name=name)])
        made.compile(loss=loss)
        return save(made, tmp_path / f"{units}-{classes}-{name}-{width}-{loss}.keras")

    base = model()
    for other, message in [
        (model(units=9), "number of units"),
        (model(classes=4), "number of outputs"),
        (model(name="tail"), "last dense layer: tail"),
        (model(width=7), "inputs"),
        (model(loss="mae"), "loss: MeanAbsoluteError.*pass --loss"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(ModelSpec((other, base)))
        assert other in str(caught.value) and base in str(caught.value)
    assert load(ModelSpec((model(loss="mae"), base), loss="log_cosh")).loss.description == "LogCosh()"
    # Keras numbers unnamed layers anew in each process.
    assert load(ModelSpec((model(name="dense_7"), model(name="dense")))).layer == "dense"


def test_a_checkpoint_saved_uncompiled_takes_the_last_ones_loss(trained: keras.Model, tmp_path: Path) -> None:
    paths = (save(make_model(), tmp_path / "0.keras"), save(trained, tmp_path / "1.keras"))
    assert load(ModelSpec(paths)).loss.task == "class"
    with pytest.raises(InputError, match="pass --loss"):
        load(ModelSpec(paths[:1]))


# The last dense layer


def sequential(*layers: Any) -> keras.Model:
    return keras.Sequential([keras.Input((D_IN,)), *layers])


def functional(head: Callable[[Any], Any]) -> keras.Model:
    inputs = keras.Input((D_IN,))
    return keras.Model(inputs, head(L.Dense(4, activation="relu", name="hidden")(inputs)))


HEADS: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "linear": (lambda: sequential(L.Dense(C, name="head")), "linear"),
    "own softmax": (lambda: sequential(L.Dense(C, activation="softmax", name="head")), "softmax"),
    "own sigmoid": (lambda: sequential(L.Dense(C, activation="sigmoid", name="head")), "sigmoid"),
    "softmax layer": (lambda: sequential(L.Dense(C, name="head"), L.Softmax()), "softmax"),
    "activation layer": (lambda: sequential(L.Dense(C, name="head"), L.Activation("sigmoid")), "sigmoid"),
    "softmax operation": (lambda: functional(lambda h: keras.ops.softmax(L.Dense(C, name="head")(h))), "softmax"),
    "sigmoid operation": (lambda: functional(lambda h: keras.ops.sigmoid(L.Dense(C, name="head")(h))), "sigmoid"),
    "seen through": (
        lambda: sequential(
            L.Dense(C, name="head"),
            L.Dropout(0.5),
            L.GaussianNoise(1.0),
            L.Reshape((1, C)),
            L.SpatialDropout1D(0.5),
            L.Flatten(),
            L.Identity(),
            L.ActivityRegularization(0.1),
            L.Activation("linear"),
            L.Softmax(),
            L.Reshape((C,)),
        ),
        "softmax",
    ),
    "nested": (
        lambda: sequential(
            keras.Sequential([L.Dense(5, activation="tanh"), L.BatchNormalization()]),
            keras.Sequential([L.Dense(4), keras.Sequential([L.Dropout(0.2), L.Dense(C, name="head")])]),
            L.Softmax(),
        ),
        "softmax",
    ),
    "dense first inside": (lambda: sequential(L.Dense(4), keras.Sequential([L.Dense(C, name="head"), L.Softmax()])), "softmax"),
    "dense on the input": (lambda: sequential(L.Dense(C, name="head")), "linear"),
    "no bias": (lambda: sequential(L.Dense(C, name="head", use_bias=False)), "linear"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str, tmp_path: Path, x: np.ndarray) -> None:
    build, activation = HEADS[name]
    model = build()
    for variable in model.weights:
        variable.assign(variable + 0.1)
    path = save(model, tmp_path / "m.keras")
    loss = {"linear": "mse", "softmax": "sparse_categorical_crossentropy", "sigmoid": "binary_crossentropy"}[activation]
    found = load(ModelSpec((path,), layer="head", loss=loss, include_bias=name != "no bias"))
    assert (found.layer, found.outputs, found.loss.activation) == ("head", C, activation)
    logits = logits_of(found, x)
    output = getattr(keras.activations, activation)(tf.constant(logits))
    np.testing.assert_allclose(output, model.predict(x, verbose=0), rtol=1e-4, atol=1e-6)


def test_one_output_may_be_squeezed(tmp_path: Path, x: np.ndarray) -> None:
    model = functional(lambda h: keras.ops.squeeze(L.Dense(1)(h), axis=-1))
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    np.testing.assert_allclose(logits_of(found, x)[:, 0], model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@keras.saving.register_keras_serializable("test_checkpoints")
class MyDense(L.Dense):
    pass


@keras.saving.register_keras_serializable("test_checkpoints")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.head = L.Dense(C)

    def call(self, inputs: Any) -> Any:
        return self.head(inputs)


def shared_dense() -> keras.Model:
    dense, inputs = L.Dense(D_IN, name="head"), keras.Input((D_IN,))
    return keras.Model(inputs, dense(L.ReLU()(dense(inputs))))


def shared_model() -> keras.Model:
    inner, inputs = sequential(L.Dense(D_IN, name="head")), keras.Input((D_IN,))
    return keras.Model(inputs, inner(L.ReLU()(inner(inputs))))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, D_IN), np.float32))
    return model


def two_outputs() -> keras.Model:
    inputs = keras.Input((D_IN,))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)])


def low_rank() -> keras.Model:
    model = sequential(L.Dense(C, name="head"))
    model.get_layer("head").enable_lora(2)
    return model


REFUSED: dict[str, tuple[Callable[[], keras.Model], str]] = {
    "relu on the last dense": (lambda: sequential(L.Dense(C, activation="relu", name="head")), "head .Dense. has the activation relu"),
    "relu after": (lambda: sequential(L.Dense(C, name="head"), L.ReLU(name="after")), "layer after .ReLU. stands at the end"),
    "batch norm after": (
        lambda: sequential(L.Dense(C), L.BatchNormalization(name="bn")),
        r"layer bn \(BatchNormalization\) stands at the end",
    ),
    "scaled after": (lambda: functional(lambda h: L.Dense(C)(h) / 2.0), r"\(TrueDivide\) stands at the end"),
    "two activations": (lambda: sequential(L.Dense(C, activation="softmax"), L.Softmax()), "softmax, and a softmax follows"),
    "two activation layers": (lambda: sequential(L.Dense(C), L.Softmax(), L.Activation("sigmoid")), "is a second activation"),
    "convolution": (
        lambda: sequential(L.Reshape((1, 1, D_IN)), L.Conv2D(C, 1, name="conv"), L.Flatten()),
        r"ends in layer conv \(Conv2D\), which is not a Dense layer",
    ),
    "einsum": (lambda: sequential(L.EinsumDense("ab,bc->ac", C, name="ein")), r"ein \(EinsumDense\), which is not a Dense layer"),
    "subclass of dense": (lambda: sequential(MyDense(C, name="mine")), "is a subclass of Dense"),
    "no dense": (lambda: sequential(L.Flatten()), "no Dense layer stands between"),
    "per token": (lambda: sequential(L.Reshape((2, 3)), L.Dense(C, name="head")), "sum of outer products"),
    "grouped softmax": (lambda: sequential(L.Dense(4), L.Reshape((2, 2)), L.Softmax(), L.Flatten()), "softmax is over groups"),
    "reshaped": (lambda: sequential(L.Dense(4), L.Reshape((2, 2))), r"reshaped to \(None, 2, 2\)"),
    "shared": (shared_dense, "is called 2 times"),
    "shared model": (shared_model, "is called 2 times"),
    "subclassed model": (subclassed, r"subclassed model \(Subclassed\)"),
    "two outputs": (two_outputs, "has 2 outputs, expected one"),
    "no bias": (lambda: sequential(L.Dense(C, use_bias=False)), "has no bias.*--include_bias=false"),
    "lora": (low_rank, "LoRA"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_heads(name: str, tmp_path: Path) -> None:
    build, message = REFUSED[name]
    path = save(build(), tmp_path / "m.keras")
    with pytest.raises(InputError, match=message) as caught:
        load(ModelSpec((path,), loss="mse"))
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_token_inputs_and_several_inputs(tmp_path: Path) -> None:
    tokens, extra = keras.Input((4,), dtype="int32", name="tokens"), keras.Input((2,), name="extra")
    h = L.Concatenate()([L.GlobalAveragePooling1D()(L.Embedding(10, 3)(tokens)), extra])
    model = keras.Model([tokens, extra], L.Dense(C)(h))
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="mse"))
    assert found.inputs == (InputSpec("tokens", (4,), "int32"), InputSpec("extra", (2,), "float32"))
    a, b = np.array([[1, 2, 3, 9]], np.int32), np.array([[0.5, -1.0]], np.float32)
    expected = model.predict([a, b], verbose=0)
    for inputs in ([a, b], {"extra": b, "tokens": a}):
        np.testing.assert_allclose(logits_of(found, inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_gives_float32(policy: str, tmp_path: Path, x: np.ndarray) -> None:
    model = keras.Sequential(
        [
            keras.Input((D_IN,)),
            L.Dense(8, activation="relu", dtype=policy, name="hidden"),
            L.Dense(C, dtype=policy, name="head"),
            L.Activation("linear", dtype="float32"),
        ]
    )
    found = load(ModelSpec((save(model, tmp_path / "m.keras"),), loss="SparseCategoricalCrossentropy(from_logits=True)"))
    logits, h = found.logits_and_activations(0, x)
    assert logits.dtype == h.dtype == tf.float32
    hidden = tf.cast(model.get_layer("hidden")(x), tf.float32).numpy()
    np.testing.assert_array_equal(h, hidden)
    np.testing.assert_allclose(logits, hidden @ model.get_layer("head").kernel.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, model.predict(x, verbose=0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("detach", "word"), [(False, ""), (True, " as logits")])
def test_from_logits_after_a_softmax_follows_keras(detach: bool, word: str, tmp_path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Keras finds the logits behind a softmax, unless another operation comes between."""
    model = sequential(L.Dense(C, activation="softmax", name="head"), *([L.Reshape((C,))] if detach else []))
    compile_model(model)
    path = save(model, tmp_path / "m.keras")
    found = load(ModelSpec((path,)))
    assert found.loss.description.endswith(f"after softmax{word}")
    logits, _ = found.logits_and_activations(0, x[:1])
    delta = found.loss.loss_grads(logits, y[:1, None])[0]

    @tf.function
    def full() -> Any:
        with tf.GradientTape() as tape:
            value = model.compute_loss(x=x[:1], y=y[:1], y_pred=model(x[:1], training=True))
        return tape.gradient(value, model.get_layer("head").bias.value)

    with contextlib.nullcontext() if detach else pytest.warns(UserWarning, match="from_logits"):
        expected = full()
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-6)


def test_a_softmax_in_half_precision_hides_the_logits_too(tmp_path: Path) -> None:
    model = sequential(L.Dense(C, activation="softmax", dtype="mixed_float16", name="head"))
    path = save(compile_model(model), tmp_path / "m.keras")
    assert load(ModelSpec((path,))).loss.description.endswith("after softmax as logits")
    assert load(ModelSpec((path,), loss="sparse_categorical_crossentropy")).loss.description.endswith("after softmax")
