"""Keras losses made of a text, a name or a serialized loss, with their name and arguments."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from transforms.core.errors import InputError, first_line


@dataclass(frozen=True)
class KerasLoss:
    """A Keras loss with its name and arguments."""

    instance: Any
    """An instance of `keras.losses.Loss`."""
    name: str
    """The name that a user knows it by: a class of Keras, or `package>name` of a registered one."""
    arguments: Mapping[str, Any]
    """Its arguments; empty where a custom class does not give them."""
    is_builtin: bool
    """Whether it is one of Keras's own."""

    @classmethod
    def of(cls, instance: Any) -> KerasLoss:
        """Describes an instance of `keras.losses.Loss`."""
        arguments = dict(getattr(instance, "_fn_kwargs", None) or {})
        # A custom class may have no usable get_config.
        with contextlib.suppress(Exception):
            arguments = {**arguments, **instance.get_config()}
        is_builtin = _is_builtin(instance)
        if isinstance(instance, FunctionLoss):
            name = keras.saving.get_registered_name(instance.function)
        elif is_builtin:
            name = type(instance).__name__
        else:
            name = keras.saving.get_registered_name(type(instance))
        return cls(instance, name, arguments, is_builtin)

    @property
    def plain_name(self) -> str:
        """The name in lower case, without underscores."""
        return self.name.lower().replace("_", "")

    @property
    def from_logits(self) -> bool:
        """Whether the loss expects logits, instead of probabilities."""
        return bool(self.arguments.get("from_logits", False))


class FunctionLoss(keras.losses.Loss):
    """A loss function of the user's with its keyword arguments."""

    def __init__(self, function: Callable[..., Any], keywords: dict[str, Any]):
        super().__init__(name=function.__name__, reduction="none")
        self.function = function
        self.keywords = keywords

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Calls the function.

        Args:
            y_true: labels, `[n]` class indices or `[n, C]`, float32.
            y_pred: outputs `[n, C]` float32.
        """
        return self.function(y_true, y_pred, **self.keywords)

    def get_config(self) -> dict[str, Any]:
        """Returns the keyword arguments, the function's defaults included."""
        defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(self.function).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        }
        return {**defaults, **self.keywords}


def from_compile_config(compiled: Any, outputs: int) -> Any:
    """Makes the Keras loss of `compile_config["loss"]`.

    Args:
        compiled: a name, a serialized loss, or a list or dict with one of them.
        outputs: C, the number of logits.

    Raises:
        InputError: there is no loss, there are several, or it cannot be loaded.
    """
    if isinstance(compiled, Mapping) and "class_name" not in compiled:
        compiled = list(compiled.values())
    if isinstance(compiled, (list, tuple)):
        losses = [loss for loss in compiled if loss is not None]
        if len(losses) > 1:
            raise InputError(
                f"The model was compiled with {len(losses)} losses, expected one: models with one "
                "output are supported."
            )
        return from_compile_config(losses[0] if losses else None, outputs)
    if compiled is None:
        raise InputError(
            "The checkpoints hold no compiled loss; pass `loss`, such as "
            "`loss='SparseCategoricalCrossentropy(from_logits=True)'`."
        )
    if isinstance(compiled, str):
        return from_name(compiled, {}, outputs)
    if compiled.get("class_name") == "function" and isinstance(compiled.get("config"), str):
        return from_name(compiled["config"], {}, outputs)
    return _deserialize(compiled)


def _deserialize(serialized: Mapping[str, Any]) -> Any:
    """Makes a Keras loss of its serialized form."""
    try:
        keras_loss = _instance(keras.losses.deserialize(dict(serialized)), {})
    except Exception as error:
        name = serialized.get("registered_name") or serialized.get("class_name")
        raise InputError(
            f"The compiled loss {name} cannot be loaded ({first_line(error)}); name the module "
            "that registers it with `imports`, or pass `loss`."
        ) from error
    # Keras's Huber leaves its delta out of its config, so that a loaded one silently has the
    # default.
    arguments = getattr(keras_loss, "_fn_kwargs", {})
    lost = sorted(set(arguments) - set(serialized.get("config") or ()) - {"axis"})
    if lost and _is_builtin(keras_loss):
        name = type(keras_loss).__name__
        values = ", ".join(f"{key}={arguments[key]!r}" for key in lost)
        raise InputError(
            f"The archive of a model does not keep {', '.join(lost)} of the loss {name}; pass it, "
            f"as in `loss='{name}({values})'`."
        )
    return keras_loss


def from_text(text: str, outputs: int) -> Any:
    """Makes the Keras loss that the setting `loss` names.

    Args:
        text: `name` or `name(key=literal, …)`.
        outputs: C, the number of logits.

    Raises:
        InputError: the text has another form, or there is no such loss.
    """
    match = re.fullmatch(r"\s*([\w.]+(?:>[\w.]+)?)\s*(\(.*\))?\s*", text, re.DOTALL)
    wrong = (
        f"`loss={text!r}` is not a loss; expected a name, or a name with keyword literals, such as "
        "'CategoricalCrossentropy(from_logits=True)'."
    )
    if not match:
        raise InputError(wrong)
    keywords: dict[str, Any] = {}
    if match[2]:
        try:
            call = ast.parse("f" + match[2], mode="eval").body
            if (
                not isinstance(call, ast.Call)
                or call.args
                or any(word.arg is None for word in call.keywords)
            ):
                raise InputError(wrong)
            keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        except (SyntaxError, ValueError) as error:
            raise InputError(wrong) from error
    return from_name(match[1], keywords, outputs)


def from_name(name: str, keywords: Mapping[str, Any], outputs: int) -> Any:
    """Makes the Keras loss of a name and keyword arguments.

    Args:
        name: of a class or function of Keras, in any of its spellings, or of a registered one.
        keywords: its arguments.
        outputs: C, the number of logits.

    Raises:
        InputError: there is no such loss, or it does not take the arguments.
    """
    if name.lower() in ("crossentropy", "ce"):
        # Keras chooses by the labels' shape at the first batch, which is not in the archive; only
        # one output leaves no choice.
        if outputs != 1:
            raise InputError(
                f"The loss {name!r} stands for several; pass "
                "`loss=sparse_categorical_crossentropy`, categorical_crossentropy or "
                "binary_crossentropy."
            )
        name = "binary_crossentropy"
    definition = _definition(name)
    if definition is None:
        raise InputError(
            f"The loss {name!r} is neither a Keras loss nor a registered one; name the module that "
            "registers it with `imports`, or pass `loss`."
        )
    try:
        return _instance(definition, keywords)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The loss {name} does not take {dict(keywords)}: {first_line(error)}; correct `loss`."
        ) from error


def _definition(name: str) -> Any | None:
    """Finds the class, function or instance of a name, registered ones first."""
    registered = keras.saving.get_registered_object(name)
    registered = registered or keras.saving.get_registered_object(f"Custom>{name}")
    if registered is not None:
        return registered
    if inspect.isclass(getattr(keras.losses, name, None)):
        return getattr(keras.losses, name)
    try:
        return keras.losses.get(name)
    except ValueError:
        return None


def _instance(definition: Any, keywords: Mapping[str, Any]) -> Any:
    """Makes an instance of a loss class, or wraps a loss function as Keras does on compiling."""
    if isinstance(definition, keras.losses.Loss):
        return definition
    if inspect.isclass(definition):
        return definition(**keywords)
    if not callable(definition):
        raise InputError(f"The loss {definition!r} is neither a class nor a function.")
    # A built-in function has a class of the same name and the same arguments.
    class_name = definition.__name__.replace("_", "")
    if getattr(definition, "__module__", "").startswith("keras."):
        for name, cls in vars(keras.losses).items():
            if inspect.isclass(cls) and name.lower() == class_name:
                return cls(**keywords)
    inspect.signature(definition).bind(None, None, **keywords)
    return FunctionLoss(definition, dict(keywords))


def _is_builtin(keras_loss: Any) -> bool:
    return type(keras_loss).__module__.startswith("keras.")
