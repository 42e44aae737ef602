"""The `Loss` of a compiled or named Keras loss: task, labels, formula and description."""

from __future__ import annotations

import copyreg
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from transforms.core.errors import InputError
from transforms.models.losses import keras_losses, trials
from transforms.models.losses.keras_losses import FunctionLoss, KerasLoss
from transforms.models.losses.labels import LabelRule
from transforms.models.losses.loss import Formula, Loss

ACTIVATIONS = ("linear", "softmax", "sigmoid")

# Losses that take probabilities without an argument `from_logits`.
_PROBABILITY_ONLY = ("kldivergence", "categoricalgeneralizedcrossentropy")
# Arguments of a Keras loss that do not change the loss of one example.
_NOT_MATHEMATICAL = ("name", "reduction", "dtype")
_CLOSED_FORMS: Mapping[type, Formula] = {
    keras.losses.SparseCategoricalCrossentropy: Formula.SOFTMAX_CROSS_ENTROPY,
    keras.losses.CategoricalCrossentropy: Formula.SOFTMAX_CROSS_ENTROPY,
    keras.losses.BinaryCrossentropy: Formula.SIGMOID_CROSS_ENTROPY,
    keras.losses.MeanSquaredError: Formula.MEAN_SQUARED_ERROR,
}
# The activations that each closed form covers.
_COVERED: Mapping[Formula, tuple[str, ...]] = {
    Formula.SOFTMAX_CROSS_ENTROPY: ("linear", "softmax"),
    Formula.SIGMOID_CROSS_ENTROPY: ("linear", "sigmoid"),
    Formula.MEAN_SQUARED_ERROR: ("linear",),
    Formula.AUTOMATIC: ACTIVATIONS,
}


def resolve(
    compiled: Any | None,
    override: str | None,
    activation: str,
    outputs: int,
    loss_weights: Any | None = None,
    detached: bool = False,
    per_token: bool = False,
) -> Loss:
    """Makes the loss that a model was compiled with, or that the setting `loss` names.

    Args:
        compiled: `compile_config["loss"]` of a .keras archive: a name, a serialized loss, or a list
            or dict with one of them.
        override: the value of `loss`: the name of a Keras loss, or `package>name` of a registered
            one, and keyword literals in parentheses where it takes any.
        activation: the activation that follows the logits in the model: `linear`, `softmax` or
            `sigmoid`.
        outputs: C.
        loss_weights: `compile_config["loss_weights"]`: None, a number, or a list or dict with one
            number.
        detached: whether an operation stands between the activation and the loss (a reshape, a cast
            to float32), so that Keras does not find the logits and follows `from_logits=True` even
            after a softmax.
        per_token: whether the model gives logits at several positions; the result is then the loss
            of one position, without the reduction.

    Raises:
        InputError: there is no loss, it is unknown, there are several, or it does not fit the
            activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {ACTIVATIONS}")
    loss = KerasLoss.of(
        keras_losses.from_text(override, outputs)
        if override
        else keras_losses.from_compile_config(compiled, outputs)
    )
    weight = _loss_weight(loss_weights)
    _check_arguments(loss, per_token)
    _check_activation(loss, activation, outputs)
    # After no activation the output is the logits.
    detached = detached and activation != "linear"
    arguments = (compiled, override, activation, outputs, loss_weights, detached, per_token)
    resolved = _build(loss, activation, outputs, weight, detached, per_token, arguments)
    if resolved.formula is Formula.AUTOMATIC:
        trials.check_per_example(resolved, loss.name)
        if per_token:
            trials.check_per_position(resolved, loss.name)
    return resolved


def _build(
    loss: KerasLoss,
    activation: str,
    outputs: int,
    weight: float,
    detached: bool,
    per_token: bool,
    arguments: tuple[Any, ...],
) -> Loss:
    """Chooses task, rule of labels and formula for a Keras loss; see `resolve`."""
    task = _task(loss, activation, outputs)
    formula = _formula(loss, activation, detached)
    # Keras takes detached probabilities for logits under from_logits=True only; without it the
    # activation is folded in all the same.
    description = _describe(loss, formula, activation, weight, detached and loss.from_logits)
    ignored, means = loss.arguments.get("ignore_class"), _means_positions(loss)
    if per_token:
        description += _describe_positions(ignored, means)
    return Loss(
        task=task,
        outputs=outputs,
        activation=activation,
        description=description,
        ignored_label=ignored,
        means_positions=means,
        label_rule=_label_rule(loss, task),
        formula=formula,
        label_smoothing=_label_smoothing(loss),
        weight=weight,
        detached=detached,
        keras_loss=loss.instance,
        arguments=arguments,
    )


def _reduce(loss: Loss) -> tuple[Callable[..., Loss], tuple[Any, ...]]:
    return resolve, loss.arguments


# Keras losses do not pickle reliably. Registered here, since `loss` cannot import this module.
copyreg.pickle(Loss, _reduce)


def of_output(
    compiled: Any, loss_weights: Any, names: Sequence[str], output: int
) -> tuple[Any, Any]:
    """Returns the compiled loss and loss weight of one output of a model.

    Args:
        compiled: `compile_config["loss"]`; one loss serves every output.
        loss_weights: `compile_config["loss_weights"]`.
        names: the names of the model's outputs.
        output: the index of the output.

    Raises:
        InputError: a list has another length than the outputs.
    """
    if len(names) == 1:
        return compiled, loss_weights

    def select(configured: Any, what: str) -> Any:
        if isinstance(configured, Mapping) and configured.get("class_name") == "__tuple__":
            configured = configured["config"]["value"]
        if isinstance(configured, Mapping) and "class_name" not in configured:
            return configured.get(names[output])
        if isinstance(configured, (list, tuple)):
            if len(configured) != len(names):
                raise InputError(
                    f"The model was compiled with {len(configured)} {what} for {len(names)} "
                    f"outputs ({', '.join(names)})."
                )
            return configured[output]
        return configured

    return select(compiled, "losses"), select(loss_weights, "loss weights")


def _loss_weight(loss_weights: Any) -> float:
    """Returns the only loss weight, 1 if there is none."""
    if isinstance(loss_weights, Mapping):
        loss_weights = list(loss_weights.values())
    if isinstance(loss_weights, (list, tuple)):
        if len(loss_weights) > 1:
            raise InputError(
                f"The model was compiled with {len(loss_weights)} loss weights, expected one: "
                "models with one output are supported."
            )
        loss_weights = loss_weights[0] if loss_weights else None
    if loss_weights is None:
        return 1.0
    if (
        isinstance(loss_weights, bool)
        or not isinstance(loss_weights, (int, float))
        or not np.isfinite(loss_weights)
    ):
        raise InputError(
            f"The model was compiled with loss_weights={loss_weights!r}, expected one number."
        )
    return float(loss_weights)


def _check_arguments(loss: KerasLoss, per_token: bool) -> None:
    """Raises InputError for arguments under which an example has no loss of its own."""
    ignored, axis = loss.arguments.get("ignore_class"), loss.arguments.get("axis", -1)
    if ignored is not None and not per_token:
        raise InputError(
            f"The loss {loss.name} has ignore_class={ignored}, which gives examples of that class "
            "no gradient and is not supported; leave those examples out and pass `loss` without "
            "ignore_class."
        )
    if axis != -1:
        raise InputError(
            f"The loss {loss.name} has axis={axis}, expected axis=-1, one loss per example; pass "
            "another `loss`."
        )


def _check_activation(loss: KerasLoss, activation: str, outputs: int) -> None:
    """Raises InputError unless the loss fits the activation and the number of outputs."""
    has_from_logits = "from_logits" in loss.arguments
    takes_probabilities = has_from_logits or (
        loss.is_builtin and loss.plain_name in _PROBABILITY_ONLY
    )
    if activation == "linear" and takes_probabilities and not loss.from_logits:
        advice = (
            f"pass `loss='{loss.name}(from_logits=True)'` if it was trained on logits"
            if has_from_logits
            else "add the softmax or sigmoid to the model, or pass `loss`"
        )
        raise InputError(
            f"The loss {loss.name} takes probabilities (from_logits=False), but nothing turns the "
            f"logits of the last dense layer into probabilities; {advice}."
        )
    constant = _is_over_classes(loss) and "hinge" not in loss.plain_name
    if outputs == 1 and (activation == "softmax" or constant):
        what = "A softmax" if activation == "softmax" else f"The loss {loss.name}"
        raise InputError(
            f"{what} over one output is constant and has no gradient: the last dense layer has 1 "
            "unit, expected at least 2; use a sigmoid with binary_crossentropy for two classes."
        )


def _is_sparse(loss: KerasLoss) -> bool:
    """Returns whether labels are class indices.

    No config says so: Keras's losses of class indices are known, custom ones go by their name.
    """
    return "sparse" in loss.plain_name or (
        loss.is_builtin and loss.plain_name == "categoricalgeneralizedcrossentropy"
    )


def _is_over_classes(loss: KerasLoss) -> bool:
    """Returns whether the outputs of the loss exclude each other, as those of a softmax do."""
    return (
        _is_sparse(loss)
        or "categorical" in loss.plain_name
        or (loss.from_logits and "binary" not in loss.plain_name)
    )


def _task(loss: KerasLoss, activation: str, outputs: int) -> str:
    """Chooses the meaning of a label: `class`, `binary`, `multilabel` or `regression`."""
    if activation == "softmax" or (_is_over_classes(loss) and outputs > 1):
        return "class"
    if activation == "sigmoid" or "binary" in loss.plain_name:
        return "binary" if outputs == 1 else "multilabel"
    return "regression"


def _label_rule(loss: KerasLoss, task: str) -> LabelRule:
    """Chooses the rule that labels must follow."""
    if _is_sparse(loss):
        return LabelRule.INDEX
    if loss.is_builtin and loss.plain_name == "categoricalhinge":
        return LabelRule.SIGNED_ONE_HOT
    if loss.is_builtin and loss.plain_name in ("hinge", "squaredhinge"):
        return LabelRule.SIGNS
    if "binary" in loss.plain_name or task in ("binary", "multilabel"):
        return LabelRule.FRACTIONS
    return LabelRule.DISTRIBUTION if task == "class" else LabelRule.FINITE


def _formula(loss: KerasLoss, activation: str, detached: bool) -> Formula:
    """Chooses the closed form of the loss gradient, where one covers loss and activation."""
    formula = _CLOSED_FORMS.get(type(loss.instance), Formula.AUTOMATIC)
    if activation not in _COVERED[formula] or (detached and loss.from_logits):
        return Formula.AUTOMATIC
    return formula


def _means_positions(loss: KerasLoss) -> bool:
    """Returns whether Keras reduces the losses of positions to their mean.

    The gradient of a loss that is not reduced is that of the sum.
    """
    # Keras compiles a bare function with its default reduction, a mean.
    is_function = isinstance(loss.instance, FunctionLoss)
    return is_function or loss.instance.reduction not in ("sum", "none", None)


def _label_smoothing(loss: KerasLoss) -> float:
    return float(loss.arguments.get("label_smoothing") or 0.0)


def _describe(
    loss: KerasLoss, formula: Formula, activation: str, weight: float, as_logits: bool
) -> str:
    """Returns the canonical description of a loss.

    Closed forms are described without from_logits, which the activation has settled.

    Args:
        loss: the Keras loss.
        formula: how its gradient is computed.
        activation: the activation that follows the logits.
        weight: the loss weight.
        as_logits: whether the loss takes the probabilities for logits.
    """
    if formula is Formula.AUTOMATIC:
        arguments = ", ".join(
            f"{key}={json.dumps(loss.arguments[key], sort_keys=True, default=str)}"
            for key in sorted(loss.arguments)
            if key not in _NOT_MATHEMATICAL
        )
    else:
        smoothing = _label_smoothing(loss)
        arguments = f"label_smoothing={smoothing!r}" if smoothing else ""
    return (
        f"{loss.name}({arguments})"
        + ("" if activation == "linear" else f" after {activation}")
        + (" as logits" if as_logits else "")
        + (f" times {weight!r}" if weight != 1 else "")
    )


def _describe_positions(ignored: int | None, means: bool) -> str:
    return (
        (f" ignoring {ignored}" if ignored is not None else "")
        + (", mean" if means else ", sum")
        + " over positions"
    )
