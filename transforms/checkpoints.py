"""Checkpoints of a Keras model: what is in them, and the logits and activations of their last dense layer.

Everything here reads local files. `inspect` looks into a checkpoint without building a model, `order` sorts
checkpoints, `load` builds them and makes sure that every variable got its value from the file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from transforms.errors import InputError
from transforms.losses import Loss, resolve

_KINDS = "a .keras file, a .weights.h5 file, or the .index and .data-* files of a TensorFlow checkpoint"
_DATA_FILE = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that a worker needs to load the checkpoints; it pickles."""

    checkpoints: tuple[str, ...]
    """Local paths in final order: .keras, .weights.h5, or prefixes of TensorFlow checkpoints."""
    model: str | None = None
    """The architecture for weights files: a .keras file, a .json file, or `module:function` returning a Keras model."""
    imports: tuple[str, ...] = ()
    """Modules that register custom code, imported before anything is loaded."""
    layer: str | None = None
    """The name of the last dense layer; found if None."""
    loss: str | None = None
    """What --loss names; the compiled loss if None."""
    include_bias: bool = True
    """Whether gradients include those of the layer's bias."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    path: str
    step: int | None
    """Updates that the optimizer had made; None if the checkpoint does not hold it."""
    learning_rate: float | None
    """The rate at saving: a constant, or a schedule at `step`; None with a `note`."""
    digest: str
    """SHA-256 of the content, hexadecimal."""
    note: str
    """What is missing and why; empty if nothing is."""


@dataclass(frozen=True)
class InputSpec:
    """One input of the model."""

    name: str
    shape: tuple[int | None, ...]
    """Without the batch dimension."""
    dtype: str


# Files


def group_paths(paths: Sequence[str]) -> list[str]:
    """Turns matched files into checkpoints.

    Args:
        paths: file names, local or remote; none is opened.

    Returns:
        .keras and .weights.h5 files as they are, a TensorFlow checkpoint's files as their prefix; in order of first
        appearance. The `checkpoint` file that TensorFlow keeps beside its checkpoints is left out.

    Raises:
        InputError: a file of another kind, or a TensorFlow checkpoint whose .index or .data-* file is missing.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        data = _DATA_FILE.fullmatch(path)
        if path.endswith((".keras", ".weights.h5")):
            found.setdefault(path, set()).update(("index", "data"))
        elif path.endswith(".index"):
            found.setdefault(path.removesuffix(".index"), set()).add("index")
        elif data:
            found.setdefault(data[1], set()).add("data")
        elif path.replace("\\", "/").rsplit("/", 1)[-1] != "checkpoint":
            raise InputError(f"{path} is not a checkpoint; expected {_KINDS}.")
    for prefix, parts in found.items():
        if len(parts) == 1:
            missing = f"{prefix}.data-*" if "index" in parts else f"{prefix}.index"
            raise InputError(f"TensorFlow checkpoint {prefix} lacks {missing}; --checkpoints must match both of its kinds of file.")
    return list(found)


def natural_key(path: str) -> tuple[Any, ...]:
    """Gives a sort key under which `epoch-2` comes before `epoch-10`."""
    parts = re.split(r"(\d+)", path)
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path)


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register custom code.

    Raises:
        InputError: a module cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise InputError(
                f"--import={module} cannot be imported: {type(error).__name__}: {_first_line(error)}; install it where the program runs."
            ) from error


def inspect(path: str) -> CheckpointInfo:
    """Reads step, learning rate and digest of a checkpoint without building the model.

    A learning-rate schedule that is not Keras's own is known only after `import_modules`.

    Args:
        path: a local .keras or .weights.h5 file, or the prefix of a TensorFlow checkpoint.

    Raises:
        InputError: the file is missing, cut off or of another kind.
    """
    files = _files(path)
    digest = _digest(path, files)
    try:
        if path.endswith(".keras"):
            step, rate, note = _inspect_archive(path)
        elif path.endswith(".weights.h5"):
            with h5py.File(path, "r") as weights:
                step, rate = _optimizer_state(weights)
            note = "" if rate is not None else "a weights file holds no learning-rate schedule"
            note = "it was saved without an optimizer" if step is None else note
        else:
            step, rate, note = _inspect_tensorflow(path)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return CheckpointInfo(path=path, step=step, learning_rate=rate, digest=digest, note=note)


def order(infos: Sequence[CheckpointInfo], keep: bool) -> list[CheckpointInfo]:
    """Puts checkpoints in the order of training.

    Args:
        infos: what `inspect` gave.
        keep: leave them as given, because the user listed them.

    Returns:
        As given; else by step where all steps are known and distinct; else in the natural order of the paths.
    """
    if keep:
        return list(infos)
    steps = [info.step for info in infos]
    if None not in steps and len(set(steps)) == len(steps):
        return sorted(infos, key=lambda info: info.step or 0)
    return sorted(infos, key=lambda info: natural_key(info.path))


def _files(path: str) -> list[str]:
    """Lists the files of a checkpoint; raises InputError if one is missing."""
    if path.endswith((".keras", ".weights.h5")):
        files = [path]
    else:
        folder, name = os.path.split(path)
        beside = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
        matches = [_DATA_FILE.fullmatch(file) for file in beside]
        data = [os.path.join(folder, match[0]) for match in matches if match and match[1] == name]
        if not data and not os.path.isfile(path + ".index"):
            raise InputError(f"{path} is not a checkpoint, or does not exist; expected {_KINDS}.")
        files = [path + ".index", *(data or [path + ".data-00000-of-00001"])]
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"Checkpoint file {file} does not exist.")
    return files


def _digest(path: str, files: Sequence[str]) -> str:
    """Computes the SHA-256 of the files' content, one after the other."""
    digest = hashlib.sha256()
    try:
        for file in files:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"Checkpoint {path} cannot be read ({_first_line(error)}); it is cut off or damaged: copy or save it again.")


def _read_config(path: str) -> dict[str, Any]:
    """Reads config.json of a .keras archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except Exception as error:
        raise _unreadable(path, error) from error
    return config


def _inspect_archive(path: str) -> tuple[int | None, float | None, str]:
    """Gives step, learning rate and note of a .keras file."""
    compiled = _read_config(path).get("compile_config") or {}
    with zipfile.ZipFile(path) as archive:
        # Reading the member as a whole also checks its CRC.
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r") as weights:
        step, _ = _optimizer_state(weights)
    optimizer = compiled.get("optimizer")
    if not optimizer:
        return step, None, "it was saved without an optimizer"
    if not isinstance(optimizer, Mapping):
        return step, None, f"its optimizer {optimizer!r} was compiled by name and never built"
    config = optimizer.get("config") or {}
    config = (config.get("inner_optimizer") or {}).get("config") or config
    rate = config.get("learning_rate")
    if isinstance(rate, (int, float)) and not isinstance(rate, bool):
        return step, _rate(rate), ""
    if not isinstance(rate, Mapping):
        return step, None, "its optimizer holds no learning rate"
    name = rate.get("registered_name") or rate.get("class_name")
    if step is None:
        return None, None, f"its learning-rate schedule {name} cannot be evaluated without the optimizer's step"
    try:
        schedule = keras.optimizers.schedules.deserialize(dict(rate))
        return step, _rate(keras.ops.convert_to_numpy(schedule(step))), ""
    except Exception as error:
        return step, None, f"its learning-rate schedule {name} cannot be evaluated ({_first_line(error)})"


def _optimizer_state(weights: h5py.File) -> tuple[int | None, float | None]:
    """Gives the step and, where it is a constant, the learning rate of a Keras weights file."""
    variables = weights.get("optimizer/inner_optimizer/vars") or weights.get("optimizer/vars")
    if variables is None or "0" not in variables:
        return None, None
    step = variables["0"]
    if step.shape != () or not np.issubdtype(step.dtype, np.integer):
        return None, None
    rate = variables.get("1")
    # With a schedule the second variable is a slot; a slot has a model variable's shape.
    constant = rate is not None and rate.shape == () and np.issubdtype(rate.dtype, np.floating)
    return int(step[()]), _rate(rate[()]) if constant else None


def _rate(value: Any) -> float:
    """Gives the shortest decimal of a rate, which Keras keeps in float32: 0.1 instead of 0.10000000149."""
    return float(np.format_float_positional(np.float32(value), unique=True))


def _inspect_tensorflow(prefix: str) -> tuple[int | None, float | None, str]:
    """Gives step, learning rate and note of a TensorFlow checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    keys = [key.removesuffix(_VALUE) for key in reader.get_variable_to_shape_map() if key.endswith(_VALUE)]

    def scalar(*names: str) -> Any:
        found = [key for key in keys if key.rsplit("/", 1)[-1] in names]
        # A loss-scale optimizer has a step of its own, and hands the rate on.
        found = [key for key in found if "inner_optimizer" in key.split("/")] or found
        values = {reader.get_tensor(key + _VALUE).item() for key in found}
        return values.pop() if len(values) == 1 else None

    step, rate = scalar("_iterations", "iter"), scalar("_learning_rate", "learning_rate")
    if step is None:
        return None, None, "it holds no optimizer, or several"
    note = "" if rate is not None else "a TensorFlow checkpoint holds no learning-rate schedule"
    return int(step), None if rate is None else _rate(rate), note


# Loading


def load(spec: ModelSpec) -> Checkpoints:
    """Loads all checkpoints.

    Raises:
        InputError: a file cannot be read, custom code is missing, a variable is not in a file, the model is not
            supported, or the checkpoints do not fit each other.
    """
    if not spec.checkpoints:
        raise InputError(f"No checkpoint given; --checkpoints must match {_KINDS}.")
    import_modules(spec.imports)
    seen: list[Any] = []
    heads, losses, inputs = [], [], []
    # From the last one, whose compiled loss stands in for those of checkpoints that were saved without compiling.
    compiled: tuple[Any, Any] | None = None
    for path in reversed(spec.checkpoints):
        model, own_compiled = _load_model(path, spec, seen)
        compiled = own_compiled if own_compiled[0] is not None or compiled is None else compiled
        head = _find_head(model, spec, path)
        try:
            loss = resolve(compiled[0], spec.loss, head.activation, head.outputs, compiled[1], head.detached)
        except InputError as error:
            raise InputError(f"Checkpoint {path}: {error}") from error
        heads.append(head)
        losses.append(loss)
        inputs.append(_inputs(model))
    last = spec.checkpoints[-1]
    for path, head, loss, specs in zip(reversed(spec.checkpoints), heads, losses, inputs, strict=True):
        for what, found, wanted in (
            ("inputs", _comparable(specs), _comparable(inputs[0])),
            ("last dense layer", base_name(head.layer), base_name(heads[0].layer)),
            ("number of outputs", head.outputs, heads[0].outputs),
            ("number of units before the last dense layer", head.units, heads[0].units),
            ("loss", loss.description, losses[0].description),
        ):
            if found != wanted:
                raise InputError(
                    f"Checkpoints differ in their {what}: {found} in {path}, {wanted} in {last}; give checkpoints of "
                    "one training run" + (", or pass --loss." if what == "loss" and spec.loss is None else ".")
                )
    heads.reverse()
    return Checkpoints(heads, losses[0], inputs[0], spec.include_bias)


class Checkpoints:
    """The loaded checkpoints, ready to give logits and activations; several threads may call it at once.

    Attributes:
        layer: name of the last dense layer.
        loss: the loss over its logits.
        outputs: C, the number of logits.
        units: D, the number of activations, without the bias's 1.
        include_bias: whether gradients include those of the bias.
        size: T, the number of checkpoints.
        inputs: what the model takes, in its order.
    """

    def __init__(self, heads: Sequence[_Head], loss: Loss, inputs: tuple[InputSpec, ...], include_bias: bool) -> None:
        self._heads = tuple(heads)
        self.layer = heads[-1].layer
        self.loss = loss
        self.outputs = heads[-1].outputs
        self.units = heads[-1].units
        self.include_bias = include_bias
        self.size = len(heads)
        self.inputs = inputs

    def logits_and_activations(self, t: int, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs checkpoint t in inference mode up to its last dense layer, and that layer in float32.

        Args:
            t: 0..T−1.
            inputs: a tensor `[n, …]`; with several inputs a sequence in the order of `inputs`, or a mapping by their
                names.

        Returns:
            logits `[n, C]` and activations `[n, D]` (the layer's input), both float32. Usable inside a tf.function.
        """
        head = self._heads[t]
        if isinstance(inputs, Mapping):
            tensors = [inputs[spec.name] for spec in self.inputs]
        else:
            tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        # Batch normalisation uses the checkpoint's own statistics, dropout is off.
        activations = tf.cast(head.trunk(tensors, training=False), tf.float32)
        logits = tf.matmul(activations, tf.convert_to_tensor(head.kernel, tf.float32))
        if head.bias is not None:
            logits += tf.convert_to_tensor(head.bias, tf.float32)
        return logits, activations


def _inputs(model: Any) -> tuple[InputSpec, ...]:
    """Lists a model's inputs."""
    return tuple(
        InputSpec(name=tensor.name, shape=tuple(tensor.shape[1:]), dtype=keras.backend.standardize_dtype(tensor.dtype))
        for tensor in model.inputs
    )


def _comparable(inputs: Sequence[InputSpec]) -> list[Any]:
    """Gives what must agree between checkpoints; Keras numbers the names of unnamed inputs anew in every process."""
    return [(base_name(spec.name) if len(inputs) > 1 else "", spec.shape, spec.dtype) for spec in inputs]


def base_name(name: str) -> str:
    """Takes the number away that Keras adds to the name of an unnamed layer."""
    return re.sub(r"_\d+$", "", name)


def _load_model(path: str, spec: ModelSpec, seen: list[Any]) -> tuple[Any, tuple[Any, Any]]:
    """Loads one checkpoint into a model of its own; gives it with its compiled loss and loss weights."""
    _files(path)
    if path.endswith(".keras"):
        compiled = _compiled(_read_config(path))
        try:
            model = keras.saving.load_model(path, compile=False)
        except Exception as error:
            raise _load_error(path, error) from error
        return model, compiled
    if not spec.model:
        raise InputError(
            f"Checkpoint {path} holds weights alone; pass --model with the architecture: a .keras file, a .json file, or module:function."
        )
    model, compiled = _architecture(spec.model)
    if any(model is other for other in seen):
        raise InputError(f"--model={spec.model} returned the same model twice, expected a new one from each call.")
    seen.append(model)
    if not model.built or not model.weights:
        raise InputError(f"--model={spec.model} gives a model without variables; give it an input shape (keras.Input).")
    if path.endswith(".weights.h5"):
        _bind(model, path, lambda: _load_weights(model, path))
    else:
        _bind_tensorflow(model, path)
    return model, compiled


def _compiled(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Gives the compiled loss and the loss weights of a serialized model."""
    compiled = config.get("compile_config") or {}
    return compiled.get("loss"), compiled.get("loss_weights")


def _load_error(path: str, error: Exception) -> InputError:
    """Says why Keras could not build or load a model."""
    text = str(error)
    missing = re.search(r"Could not locate (?:class|function) '([^']+)'", text)
    if missing:
        return InputError(f"{path} needs the custom object {missing[1]}; name the module that registers it with --import.")
    if "Lambda" in text or "lambda" in text:
        return InputError(
            f"{path} holds a Lambda layer or function, which Keras's safe mode does not load; save the model with a registered layer in "
            "its place."
        )
    return InputError(
        f"Checkpoint {path} cannot be loaded: {_first_line(error)}; it is damaged, or its weights do not fit its architecture."
    )


def _architecture(source: str) -> tuple[Any, tuple[Any, Any]]:
    """Makes a new model with arbitrary weights; gives it with its compiled loss and loss weights."""
    if source.endswith((".keras", ".json")):
        if not os.path.isfile(source):
            raise InputError(f"--model={source} does not exist.")
        if source.endswith(".keras"):
            config = _read_config(source)
        else:
            try:
                with open(source, encoding="utf-8") as stream:
                    config = json.load(stream)
            except (OSError, ValueError) as error:
                raise InputError(f"--model={source} is not the JSON of a Keras model: {_first_line(error)}.") from error
        compiled = _compiled(config)
        try:
            # Without the compile_config, so that an unknown metric does not matter.
            model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
        except Exception as error:
            raise _load_error(source, error) from error
    else:
        module, colon, function = source.partition(":")
        if not colon:
            raise InputError(f"--model={source} is not an architecture; expected a .keras file, a .json file, or module:function.")
        import_modules([module])
        build = getattr(importlib.import_module(module), function, None)
        if not callable(build):
            raise InputError(f"--model={source}: module {module} has no function {function}.")
        try:
            model = build()
        except Exception as error:
            raise InputError(f"--model={source} failed: {type(error).__name__}: {_first_line(error)}.") from error
        compiled = (None, None)
        if isinstance(model, keras.Model) and model.compiled:
            compiled = _compiled({"compile_config": model.get_compile_config()})
    if not isinstance(model, keras.Model):
        raise InputError(f"--model={source} gives a {type(model).__name__}, expected a Keras model.")
    return model, compiled


def _load_weights(model: Any, path: str) -> None:
    """Reads a .weights.h5 file into a model."""
    try:
        # The optimizer's state is not wanted, and may be of another size.
        model.load_weights(path, objects_to_skip=[model.optimizer] if model.compiled else None)
    except Exception as error:
        raise _load_error(path, error) from error


def _bind(model: Any, path: str, read: Callable[[], None]) -> None:
    """Loads weights and raises InputError unless every variable got its value from the file."""
    left = _unbound(model, read)
    if left:
        raise InputError(f"Checkpoint {path} holds no value for {_listed(left)}; it is of another model than --model.")


def _unbound(model: Any, read: Callable[[], None]) -> list[str]:
    """Gives the paths of the variables that `read` leaves alone.

    Variables are filled with a mark first. A file may hold that very value (a flag, the NaN of a diverged run), so
    those that still show it are marked otherwise and read once more. Metrics and the state of random generators are
    not among `model.weights`.
    """
    for variable in model.weights:
        _fill(variable, first=True)
    read()
    marked = [variable for variable in model.weights if _shows_mark(variable, first=True)]
    if not marked:
        return []
    for variable in marked:
        _fill(variable, first=False)
    read()
    return [variable.path for variable in marked if _shows_mark(variable, first=False)]


def _mark(variable: Any, first: bool) -> Any:
    """Gives the first or second mark of a variable's dtype."""
    if keras.backend.is_float_dtype(variable.dtype):
        return np.nan if first else 0.0
    return 1 if first else 0


def _fill(variable: Any, first: bool) -> None:
    variable.assign(keras.ops.full(variable.shape, _mark(variable, first), dtype=variable.dtype))


def _shows_mark(variable: Any, first: bool) -> bool:
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    if not value.size:
        return False
    mark = _mark(variable, first)
    # Equality of NaN is only defined for real floats; bfloat16 counts as none of NumPy's.
    value = value.astype(np.float64)
    return bool(np.array_equal(value, np.full_like(value, mark), equal_nan=True))


def _bind_tensorflow(model: Any, prefix: str) -> None:
    """Restores a TensorFlow checkpoint, whatever name the model has in it."""
    try:
        names = _root_names(prefix)
    except Exception as error:
        raise _unreadable(prefix, error) from error
    fewest: list[str] | None = None
    failure: Exception | None = None
    preferred = [name for name in ("model", "net") if name in names]
    others = [name for name in names if name not in (*preferred, "optimizer", "save_counter", "step", "epoch")]
    for name in (*preferred, None, *others):
        checkpoint = tf.train.Checkpoint(model) if name is None else tf.train.Checkpoint(**{name: model})
        try:
            left = _unbound(model, functools.partial(_restore, checkpoint, prefix))
        except Exception as error:
            failure = failure or error
            continue
        if not left:
            for layer in _layers(model):
                # A Normalization layer computes with constants made from its variables.
                if layer.built and hasattr(layer, "finalize_state"):
                    layer.finalize_state()
            return
        if fewest is None or len(left) < len(fewest):
            fewest = left
    if any(name.startswith("layer_with_weights-") for name in _deep_names(prefix)):
        raise InputError(
            f"Checkpoint {prefix} was written by Keras 2, whose variables have other names; load it with Keras 2 (the tf_keras package) "
            "and save it as .weights.h5."
        )
    if fewest is None:
        raise InputError(f"Checkpoint {prefix} does not fit --model: {_first_line(failure or ValueError('nothing was read'))}.")
    raise InputError(
        f"Checkpoint {prefix} holds no value for {_listed(fewest)}; it is of another model than --model, or holds it deeper than under "
        f"{', '.join(names) or 'its root'}."
    )


def _restore(checkpoint: Any, prefix: str) -> None:
    """Reads the variables that a TensorFlow checkpoint holds of an object."""
    # Not all of the file has to be wanted: it usually holds the optimizer too.
    checkpoint.read(prefix).expect_partial()


def _listed(names: Sequence[str]) -> str:
    """Lists the first names and counts the others."""
    more = f" and {len(names) - 5} more variables" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _object_graph(prefix: str) -> Any:
    """Reads the object graph of a TensorFlow checkpoint."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(tf.train.load_checkpoint(prefix).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return graph


def _root_names(prefix: str) -> list[str]:
    """Gives the names under which a TensorFlow checkpoint's root holds objects.

    The keys of the variables do not tell: a variable that the optimizer knows too may be stored under the optimizer's
    name alone.
    """
    return [child.local_name for child in _object_graph(prefix).nodes[0].children]


def _deep_names(prefix: str) -> set[str]:
    """Gives every name in a TensorFlow checkpoint's object graph."""
    return {child.local_name for node in _object_graph(prefix).nodes for child in node.children}


def _layers(layer: Any) -> Iterator[Any]:
    """Yields a layer and the layers inside it."""
    yield layer
    for child in getattr(layer, "layers", None) or getattr(layer, "_layers", None) or ():
        yield from _layers(child)


# The last dense layer


@dataclass(frozen=True)
class _Head:
    """A loaded checkpoint: the trunk that computes the last dense layer's input, and that layer."""

    layer: str
    trunk: Any
    kernel: Any
    bias: Any | None
    outputs: int
    units: int
    activation: str
    detached: bool


# They hand their input on at inference, and the tensor itself (with the logits that Keras keeps on it) in training too.
_SAME_TENSOR = ("Identity", "ActivityRegularization")
# They hand their input's values on at inference.
_SAME_VALUES = (
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Reshape",
    "Flatten",
    "Squeeze",
    "ExpandDims",
    "Cast",
)


def _find_head(model: Any, spec: ModelSpec, path: str) -> _Head:
    """Walks back from a model's output to its last dense layer; raises InputError naming what stands in the way."""
    graph = _graph(model)
    if graph is None:
        raise InputError(
            f"{path} is a subclassed model ({type(model).__name__}), expected a Sequential or functional one: its layers' order is only in "
            "code."
        )
    if len(model.outputs) != 1:
        raise InputError(f"{path} has {len(model.outputs)} outputs, expected one.")
    output = model.outputs[0]
    # Models that the walk is inside of, each with its call in the one around it.
    frames: list[tuple[Any, Any]] = [(graph, None)]
    tensor = output
    activation, activation_shape = "linear", None
    detached, anything_after = False, False
    while True:
        inside, call = frames[-1]
        if call is not None and (position := _position(tensor, inside.inputs)) is not None:
            frames.pop()
            tensor = call.input_tensors[position]
            continue
        operation, node_index, tensor_index = tensor._keras_history
        node = operation._inbound_nodes[node_index]
        inner = _graph(operation)
        if inner is not None:
            frames.append((inner, node))
            tensor = inner.outputs[tensor_index]
            continue
        if type(operation) is keras.layers.Dense:
            own = _activation_of(operation)
            break
        own = _activation_of(operation)
        if own is None and not _is_any(operation, (*_SAME_TENSOR, *_SAME_VALUES)):
            raise _in_the_way(operation, path, model)
        if own in ("softmax", "sigmoid"):
            if activation != "linear":
                raise InputError(
                    f"{path}: {_named(operation)} is a second activation after the last dense layer; one softmax or sigmoid is supported."
                )
            if own == "softmax" and not _over_last_axis(operation, tensor):
                raise InputError(f"{path}: {_named(operation)} has axis={operation.axis}, expected a softmax over the last axis.")
            activation, activation_shape, detached = own, tensor.shape, anything_after
            detached = detached or keras.backend.standardize_dtype(tensor.dtype) != "float32"
        elif own is None and not _is_any(operation, _SAME_TENSOR):
            anything_after = True
        tensor = node.input_tensors[0]

    dense = operation
    found = _named(dense)
    if own is None:
        raise InputError(
            f"{path}: the last dense {found} has the activation {_activation_name(dense)}, expected linear, softmax or sigmoid: any "
            "other makes the loss gradient at the logits another one."
        )
    if own != "linear":
        if activation != "linear":
            raise InputError(f"{path}: {found} has the activation {own}, and a {activation} follows; one of them is supported.")
        activation, activation_shape = own, tensor.shape
        detached = anything_after or keras.backend.standardize_dtype(tensor.dtype) != "float32"
    if spec.layer is not None and spec.layer != dense.name:
        names = [layer.name for layer in _layers(model) if isinstance(layer, keras.layers.Dense)]
        raise InputError(
            f"--layer={spec.layer} is not the last dense layer of {path}, which is {found}; its dense layers are {', '.join(names)}."
        )
    hidden = node.input_tensors[0]
    if len(hidden.shape) != 2:
        raise InputError(
            f"{path}: {found} works on each position of a tensor of shape {_shape(hidden)}: its gradient is a sum of outer products over "
            "the positions, which is not supported; expected one vector per example."
        )
    calls = _calls(graph).get(id(dense), 0)
    if calls > 1:
        raise InputError(f"{path}: {found} is called {calls} times, so that its gradient is a sum over the calls; expected one call.")
    if dense.lora_enabled or dense.quantization_mode is not None:
        kind = "LoRA" if dense.lora_enabled else f"{dense.quantization_mode} quantisation"
        raise InputError(f"{path}: {found} has {kind}, expected a plain kernel; save the model without it.")
    outputs = int(dense.units)
    if activation == "softmax" and tuple(activation_shape or ())[1:] != (outputs,):
        raise InputError(f"{path}: the softmax is over groups of outputs, shape {_shape_text(activation_shape)}; expected all {outputs}.")
    if tuple(output.shape) not in [(None, outputs), *([(None,)] if outputs == 1 else [])]:
        raise InputError(
            f"{path}: the output of {found} is reshaped to {_shape(output)} per batch, expected (None, {outputs}): a loss would take it "
            "for something else."
        )
    if spec.include_bias and not dense.use_bias:
        raise InputError(f"{path}: {found} has no bias (use_bias=False); pass --include_bias=false.")
    return _Head(
        layer=dense.name,
        trunk=_trunk(hidden, frames),
        kernel=dense.kernel,
        bias=dense.bias if dense.use_bias else None,
        outputs=outputs,
        units=int(dense.kernel.shape[0]),
        activation=activation,
        detached=detached,
    )


def _graph(operation: Any) -> Any | None:
    """Gives the graph of a Sequential or functional model, None for anything else."""
    if isinstance(operation, keras.Sequential):
        graph = getattr(operation, "_functional", None)
        if graph is None:
            raise InputError(f"Model {operation.name} has no input shape; add a keras.Input, call it once before saving, or build it.")
    elif isinstance(operation, keras.Model) and isinstance(operation, keras.Function):
        graph = operation
    else:
        return None
    # A subclass that has its own way to compute does not follow the graph.
    return graph if type(operation).call.__module__.startswith("keras.") else None


def _position(tensor: Any, tensors: Sequence[Any]) -> int | None:
    """Finds a tensor among others by identity."""
    return next((i for i, other in enumerate(tensors) if other is tensor), None)


def _calls(graph: Any, counts: dict[int, int] | None = None) -> dict[int, int]:
    """Counts how often each operation is called in a graph and the models inside it, by the operation's id."""
    counts = {} if counts is None else counts
    for node in (node for nodes in graph._nodes_by_depth.values() for node in nodes):
        counts[id(node.operation)] = counts.get(id(node.operation), 0) + 1
        inner = _graph(node.operation)
        if inner is not None:
            _calls(inner, counts)
    return counts


def _trunk(hidden: Any, frames: list[tuple[Any, Any]]) -> Any:
    """Makes the model from the outermost inputs to a tensor inside the innermost frame."""
    while len(frames) > 1:
        graph, call = frames[-1]
        frames = frames[:-1]
        position = _position(hidden, graph.inputs)
        if position is not None:
            hidden = call.input_tensors[position]
        else:
            inner = keras.Model(graph.inputs, hidden, name=f"{graph.name}_up_to_last_dense")
            hidden = inner(list(call.input_tensors))
    return keras.Model(frames[0][0].inputs, hidden, name="up_to_last_dense")


def _is_any(operation: Any, names: Sequence[str]) -> bool:
    """Says whether an operation is one of Keras's own of these classes."""
    return type(operation).__name__ in names and type(operation).__module__.startswith("keras.")


def _activation_of(operation: Any) -> str | None:
    """Gives linear, softmax or sigmoid for an operation (or a dense layer) that applies it, else None."""
    if _is_any(operation, ("Softmax", "Sigmoid")):
        return type(operation).__name__.lower()
    if type(operation) in (keras.layers.Activation, keras.layers.Dense):
        for name in ("linear", "softmax", "sigmoid"):
            if operation.activation is getattr(keras.activations, name) or operation.activation is None:
                return name
    return None


def _over_last_axis(operation: Any, tensor: Any) -> bool:
    """Says whether a softmax is over the last axis of the tensor it gives."""
    axis = getattr(operation, "axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    return axis in (-1, len(tensor.shape) - 1)


def _activation_name(dense: Any) -> str:
    return str(getattr(dense.activation, "__name__", dense.activation))


def _in_the_way(operation: Any, path: str, model: Any) -> InputError:
    """Says what was found where the last dense layer was looked for."""
    found = _named(operation)
    if isinstance(operation, keras.layers.Dense):
        return InputError(f"{path}: {found} is a subclass of Dense, whose computation may differ; expected keras.layers.Dense itself.")
    if isinstance(operation, keras.layers.InputLayer):
        return InputError(f"{path}: no Dense layer stands between the input {operation.name} and the output; expected one at the end.")
    kernel = getattr(operation, "weights", None) and hasattr(operation, "kernel")
    if kernel or "Conv" in type(operation).__name__:
        return InputError(f"{path} ends in {found}, which is not a Dense layer; expected a Dense layer at the end.")
    names = [layer.name for layer in _layers(model) if isinstance(layer, keras.layers.Dense)]
    return InputError(
        f"{path}: {found} stands at the end, after any Dense layer ({', '.join(names) or 'there is none'}); expected a Dense layer "
        "followed by at most a softmax or sigmoid, dropout, reshapes and casts."
    )


def _named(operation: Any) -> str:
    return f"layer {operation.name} ({type(operation).__name__})"


def _shape(tensor: Any) -> str:
    return _shape_text(tensor.shape)


def _shape_text(shape: Any) -> str:
    return str(tuple(shape or ()))


def _first_line(error: Exception) -> str:
    """Gives the first line of an error's message without its full stop, and the next if the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(". ")
