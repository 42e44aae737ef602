"""Loaded checkpoints: their logits, activations and inputs, what they must agree in, and what
custom code they need.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import small
from tests.small import D_IN, C, L, N, logits_of, make_model, save
from transforms.core.errors import InputError
from transforms.models.checkpoints import ModelSpec, load
from transforms.models.inputs import ModelInput


def test_load_gives_logits_and_activations_of_every_checkpoint(
    trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    first = save(trained, tmp_path / "1.keras")
    expected = [trained.predict(x, verbose=0)]
    trained.fit(x, y, batch_size=4, verbose=0)
    second = save(trained, tmp_path / "2.keras")
    expected.append(trained.predict(x, verbose=0))
    spec = pickle.loads(pickle.dumps(ModelSpec((first, second))))
    checkpoints = load(spec)
    assert weakref.ref(checkpoints)() is checkpoints
    assert (checkpoints.size, checkpoints.layer, checkpoints.outputs, checkpoints.units) == (
        2,
        "head",
        C,
        8,
    )
    assert checkpoints.inputs == (ModelInput("pixels", (D_IN,), "float32"),)
    assert checkpoints.loss.description == "SparseCategoricalCrossentropy()"
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    hidden = keras.Model(trained.inputs, trained.get_layer("drop").output)
    for t in range(2):
        np.testing.assert_allclose(logits_of(checkpoints, x, t), expected[t], rtol=1e-5, atol=1e-6)
        traced = tf.function(checkpoints.logits_and_activations)(t, {"pixels": x})
        np.testing.assert_allclose(traced[0], expected[t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        checkpoints.logits_and_activations(1, x)[1], hidden(x, training=False), rtol=1e-5, atol=1e-6
    )


def test_factored_gradient_is_the_full_one(
    trained: keras.Model, x: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    """δ ⊗ h and δ against the tape on the model in inference mode, example by example."""
    checkpoints = load(ModelSpec((save(trained, tmp_path / "m.keras"),)))
    logits, h, _ = checkpoints.logits_and_activations(0, x)
    delta = checkpoints.loss.loss_grads(logits, y[:, None]).numpy()
    head = trained.get_layer("head")
    assert np.abs(head.bias.numpy()).min() > 1e-4
    for i in range(N):
        with tf.GradientTape() as tape:
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
                y[i : i + 1], trained(x[i : i + 1], training=False)
            )
        kernel, bias = tape.gradient(value, [head.kernel.value, head.bias.value])
        np.testing.assert_allclose(np.outer(h[i], delta[i]), kernel, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(delta[i], bias, rtol=1e-4, atol=1e-6)


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


def test_custom_code_is_imported_or_missed_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, x: np.ndarray
) -> None:
    model = keras.Sequential([keras.Input((D_IN,)), Twice(), L.Dense(C)])
    model.compile(loss="mse")
    path = save(model, tmp_path / "m.keras")
    expected = model.predict(x, verbose=0)
    forget(monkeypatch, "Twice")
    with pytest.raises(InputError, match=r"m.keras needs the custom object .*Twice.*`imports`"):
        load(ModelSpec((path,)))
    (tmp_path / "mine_for_test.py").write_text(
        "import keras\n@keras.saving.register_keras_serializable('test_checkpoints')\n"
        "class Twice(keras.layers.Layer):\n    def call(self, inputs):\n        return 2 * inputs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = load(ModelSpec((path,), imports=("mine_for_test",)))
    np.testing.assert_allclose(logits_of(found, x), expected, rtol=1e-5, atol=1e-6)
    sys.modules.pop("mine_for_test")
    with pytest.raises(InputError, match="`imports=not_a_module_at_all` cannot be imported"):
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
        (ModelSpec(("m.weights.h5",)), "holds weights alone; pass `model`"),
        (ModelSpec(("m.weights.h5",), model="small"), "not an architecture"),
        (ModelSpec(("m.weights.h5",), model="gone.keras"), "gone.keras` does not exist"),
        (ModelSpec(("m.weights.h5",), model="m.weights.json"), "does not exist"),
        (ModelSpec(("m.weights.h5",), model=f"{__name__}:nothing"), "has no function nothing"),
        (
            ModelSpec(("m.weights.h5",), model="sys:getrecursionlimit"),
            "gives a int, expected a Keras model",
        ),
        (
            ModelSpec(("m.weights.h5",) * 2, model=f"{small.__name__}:build_once", loss="mse"),
            "returned the same model twice",
        ),
        (
            ModelSpec(("m.keras",), layer="hidden"),
            "`layer=hidden` is not the last dense layer of .*, which is layer head.*hidden, head",
        ),
    ],
)
def test_refused_specs(
    spec: ModelSpec,
    message: str,
    trained: keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(trained, tmp_path / "m.keras")
    trained.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_differ_are_refused(trained: keras.Model, tmp_path: Path) -> None:
    def model(
        units: int = 8, classes: int = C, name: str = "head", width: int = D_IN, loss: str = "mse"
    ) -> str:
        made = keras.Sequential(
            [keras.Input((width,)), L.Dense(units), L.Dense(classes, name=name)]
        )
        made.compile(loss=loss)
        return save(made, tmp_path / f"{units}-{classes}-{name}-{width}-{loss}.keras")

    base = model()
    for other, message in [
        (model(units=9), "number of units"),
        (model(classes=4), "number of outputs"),
        (model(name="tail"), "last dense layer: tail"),
        (model(width=7), "inputs"),
        (model(loss="mae"), "loss: MeanAbsoluteError.*pass `loss`"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            load(ModelSpec((other, base)))
        assert other in str(caught.value) and base in str(caught.value)
    assert (
        load(ModelSpec((model(loss="mae"), base), loss="log_cosh")).loss.description == "LogCosh()"
    )
    # Keras numbers unnamed layers anew in each process.
    assert load(ModelSpec((model(name="dense_7"), model(name="dense")))).layer == "dense"


def test_a_checkpoint_saved_uncompiled_takes_the_last_ones_loss(
    trained: keras.Model, tmp_path: Path
) -> None:
    paths = (save(make_model(), tmp_path / "0.keras"), save(trained, tmp_path / "1.keras"))
    assert load(ModelSpec(paths)).loss.task == "class"
    with pytest.raises(InputError, match="pass `loss`"):
        load(ModelSpec(paths[:1]))
