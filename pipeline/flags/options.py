"""The flags of every command, and which of Beam's may follow them.

This module imports nothing heavy, so that `--help` and mistakes in flags are answered at once.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from pipeline.running import dataflow

_N = TypeVar("_N", int, float)

COMMANDS = {
    "influence": "trace test predictions to the training examples "
    "behind them: features and scores in one run",
    "features": "extract the features of a set of examples (stage 1)",
    "score": "score a test feature set against a training feature set (stage 2)",
    "audit": "find the labels of a training set that are likely wrong",
    "export": "turn a feature set into vectors whose dot product is, or is near to, the influence",
    "index": "build a nearest-neighbour index of a training "
    "feature set (needs the extra `neighbours`)",
    "search": "find each test example's proponents and opponents by "
    "an index, and score them exactly",
    "show": "see what an audit or an influence result holds, in the terminal",
    "plan": "tell what a `tracin score` with the same flags "
    "would cost: tiles, bytes, arithmetic, memory; nothing is run or written",
    "demo": "see the whole story on real handwritten digits that come with the install",
}

# They need seconds less before they answer.
WITHOUT_TENSORFLOW = ("plan", "show")

# What `tracin plan` is told of feature sets that are there, or else of such that are not yet.
_PLANNED_SETS = ("train_features", "test_features")
_PLANNED_COUNTS = ("train_count", "test_count", "checkpoint_count", "outputs", "units")

_EPILOG = (
    "Any flag of Apache Beam may follow: --runner, --direct_num_workers, --project, "
    "--region, --temp_location, --sdk_container_image, …"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return values[text.lower()]


def _number(text: str, kind: type[_N], low: float, high: float, expected: str) -> _N:
    """A number of a kind within limits, for a flag that takes `expected`."""
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def _positive(text: str) -> int:
    return _number(text, int, 1, float("inf"), "a whole number of at least 1")


def _whole(text: str) -> int:
    return _number(text, int, 0, float("inf"), "a whole number of at least 0")


def _count(text: str) -> int:
    return _number(text, int, 1, 10**10, "a whole number from 1 to 10,000,000,000")


def _fraction(text: str) -> float:
    return _number(text, float, 0, 1, "a number from 0 to 1")


def _gigabytes(text: str) -> float:
    return _number(
        text, float, sys.float_info.min, sys.float_info.max, "a number of gigabytes above 0"
    )


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(rate) for rate in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected numbers separated by commas, found {text!r}"
        ) from error


def _directory(text: str) -> str:
    if not text or any(character in text for character in "*?[]{}"):
        raise argparse.ArgumentTypeError(
            f"expected a directory, without glob characters, found {text!r}"
        )
    return text


def _table(text: str) -> str:
    if not re.fullmatch(dataflow.PROJECT.pattern + r":\w{1,1024}\.[\w-]{1,1024}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected PROJECT:DATASET.TABLE, found {text!r}")
    return text


def _date(text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2026-03-31, found {text!r}"
        ) from error


def _accelerator(text: str) -> str:
    if not re.fullmatch(r"type:[\w.-]+;count:[1-9]\d*(;install-nvidia-driver(:[\w.-]+)?)?", text):
        raise argparse.ArgumentTypeError(
            "expected type:NAME;count:N, perhaps followed by ;install-nvidia-driver, found "
            f"{text!r}; quote it, or the shell ends at the ;"
        )
    return text


def _formats(text: str) -> tuple[str, ...]:
    known = ("npy", "parquet", "tfrecord", "faiss", "vertex")
    found = _names(text)
    if not found or not set(found) <= set(known):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {text!r}")
    return tuple(sorted(set(found)))


def _ids(text: str) -> tuple[str, ...]:
    found = _names(text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected ids separated by commas, found {text!r}")
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command's own flags."""
    built = _Parser(
        prog=f"tracin {command}",
        description=COMMANDS[command].capitalize() + ".",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    if command == "demo":
        built.add_argument(
            "--output",
            default="tracin-demo",
            type=_directory,
            metavar="DIR",
            help="directory for data, checkpoints, results and picture (%(default)s)",
        )
        _add_overwrite(built)
        return built
    if command == "show":
        built.add_argument(
            "directory",
            type=_directory,
            metavar="DIR",
            help="directory of an audit or of influence",
        )
        built.add_argument(
            "--id", metavar="ID", help="show all that is known of this example, or test example"
        )
        built.add_argument(
            "--rows",
            type=_positive,
            default=20,
            metavar="N",
            help="otherwise show so many of the first rows (%(default)s)",
        )
        return built
    if command in ("export", "index", "search"):
        _add_vectors(built, command)
        return built
    sets = built.add_argument_group("data")
    if command == "features":
        sets.add_argument(
            "--examples",
            required=True,
            metavar="GLOBS",
            help="TFRecord files of tf.train.Example, Parquet or "
            ".npz files; globs separated by commas",
        )
    elif command == "influence":
        sets.add_argument(
            "--train_examples",
            required=True,
            metavar="GLOBS",
            help="files of the training examples: TFRecord, Parquet "
            "or .npz; globs separated by commas",
        )
        sets.add_argument(
            "--test_examples", required=True, metavar="GLOBS", help="files of the test examples"
        )
    elif command == "audit":
        sets.add_argument(
            "--previous",
            type=_directory,
            metavar="DIR",
            help="an earlier audit: what changed since is told",
        )
        sets.add_argument(
            "--test_features",
            type=_directory,
            metavar="DIR",
            help="feature set of a test set, with the same model: "
            "which training examples help or hurt it, and its labels, most",
        )
        sets.add_argument(
            "--test_examples",
            metavar="GLOBS",
            help="or files of the test examples, to extract "
            "it from; with --examples and --checkpoints",
        )
        sets.add_argument(
            "--slice_keys",
            type=_names,
            default=(),
            metavar="KEYS",
            help="keys that the test set keeps (--keep_keys), whose "
            "values are slices of it besides its labels: which training examples help or hurt each",
        )
        sets.add_argument(
            "--features",
            metavar="DIR",
            help="feature set of the training examples, as `tracin features` wrote it",
        )
        sets.add_argument(
            "--examples",
            metavar="GLOBS",
            help="or files of the training examples, to extract it from: TFRecord, Parquet or .npz",
        )
    else:
        needed = command == "score"
        sets.add_argument(
            "--train_features",
            required=needed,
            metavar="DIR",
            help="feature set of the training examples, as `tracin features` wrote it",
        )
        sets.add_argument(
            "--test_features",
            required=needed,
            metavar="DIR",
            help="feature set of the test examples",
        )
    if command == "plan":
        _add_counts(built.add_argument_group("instead of feature sets that are not extracted yet"))
        built.add_argument(
            "--json",
            nargs="?",
            const=True,
            default=False,
            type=_boolean,
            metavar="true|false",
            help="print one JSON object, in bytes",
        )
        sets.add_argument(
            "--output",
            type=_directory,
            metavar="DIR",
            help="as for `tracin score`; nothing is looked up or written there",
        )
    else:
        _add_output(sets)
    _add_overwrite(sets)
    if command != "features":
        _add_table(sets)
    if command in ("influence", "score", "audit"):
        _add_class_names(sets)
    if command in ("features", "influence", "audit"):
        _add_examples(sets, command)
        _add_model(built.add_argument_group("model"), required=command != "audit")
    if command in ("score", "plan", "influence"):
        _add_scoring(built.add_argument_group("scoring"))
    if command == "audit":
        _add_suspects(built.add_argument_group("suspects"))
    if command in ("score", "plan"):
        _add_rates(built.add_argument_group("model"))
    return built


def _add_class_names(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--class_names",
        metavar="FILE",
        help="text file with the names of the classes, one a line, for the report",
    )


def _add_output(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--output",
        required=True,
        type=_directory,
        metavar="DIR",
        help="directory for the results, on any filesystem that Beam writes",
    )


def _add_vectors(built: argparse.ArgumentParser, command: str) -> None:
    sets = built.add_argument_group("data")
    if command == "export":
        sets.add_argument(
            "--features",
            required=True,
            type=_directory,
            metavar="DIR",
            help="feature set, as `tracin features` wrote it",
        )
        sets.add_argument(
            "--projection_of",
            type=_directory,
            metavar="DIR",
            help="vectors, or an index, of the training set: these "
            "will be comparable with them; instead of the flags below",
        )
    else:
        sets.add_argument(
            "--train_features",
            required=True,
            type=_directory,
            metavar="DIR",
            help="feature set of the training examples",
        )
    if command == "search":
        sets.add_argument(
            "--test_features",
            required=True,
            type=_directory,
            metavar="DIR",
            help="feature set of the test examples",
        )
        sets.add_argument(
            "--index",
            required=True,
            type=_directory,
            metavar="DIR",
            help="index of the training set, by `tracin index`",
        )
        sets.add_argument(
            "--test_ids",
            type=_ids,
            default=(),
            metavar="IDS",
            help="only these test examples, separated by commas (all)",
        )
    _add_output(sets)
    _add_overwrite(sets)
    if command == "search":
        _add_class_names(sets)
        _add_searching(built.add_argument_group("search"))
    else:
        _add_projection(built.add_argument_group("vectors"), command)


def _add_projection(group: argparse._ActionsContainer, command: str) -> None:
    group.add_argument(
        "--projection",
        choices=("auto", "principal", "sketch", "random", "exact"),
        default="auto",
        help="how vectors are made shorter: auto and principal fit "
        "the training set, sketch and random are unbiased, exact leaves nothing out (%(default)s)",
    )
    group.add_argument(
        "--dimensions",
        type=_positive,
        metavar="N",
        help="numbers of a vector, at most (1024, where exact ones have more)",
    )
    group.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of random numbers (%(default)s)"
    )
    _add_rates(group)
    if command == "export":
        group.add_argument(
            "--normalize",
            choices=("none", "cosine"),
            help="cosine: vectors of length 1 (none, or as the vectors of --projection_of)",
        )
        group.add_argument(
            "--formats",
            type=_formats,
            default=("npy",),
            metavar="FORMATS",
            help="some of npy, parquet, tfrecord, faiss (needs "
            "the extra `neighbours`) and vertex, separated by commas (npy)",
        )
    else:
        _add_normalize(group)
        group.add_argument(
            "--kind",
            choices=("auto", "flat", "ivf", "hnsw"),
            default="auto",
            help="flat compares all vectors, ivf looks into some "
            "lists, hnsw walks through a graph; auto is flat or, for many, ivf",
        )
        group.add_argument(
            "--memory_gb",
            type=_gigabytes,
            default=2.0,
            metavar="GB",
            help="memory for building on each machine; decides the index files' size",
        )
    _add_switch(group, "--allow_large_vectors", "make vectors of more than 131,072 numbers")


def _add_searching(group: argparse._ActionsContainer) -> None:
    _add_k(group)
    group.add_argument(
        "--oversampling",
        type=_positive,
        default=4,
        metavar="N",
        help="candidates that are scored exactly, over k (%(default)s)",
    )
    group.add_argument(
        "--nprobe",
        type=_positive,
        metavar="N",
        help="lists of an ivf index that are looked into (an eighth)",
    )
    group.add_argument(
        "--ef_search",
        type=_positive,
        metavar="N",
        help="vectors held while an hnsw index is walked through (twice the candidates)",
    )
    group.add_argument(
        "--recall_sample",
        type=_whole,
        default=100,
        metavar="N",
        help="test examples for which the exact answer is computed too, "
        "to tell what was missed (%(default)s)",
    )


def _add_counts(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--train_count", type=_count, metavar="N", help="number of training examples"
    )
    group.add_argument("--test_count", type=_count, metavar="N", help="number of test examples")
    group.add_argument("--checkpoint_count", type=_count, metavar="T", help="number of checkpoints")
    group.add_argument(
        "--outputs", type=_count, metavar="C", help="outputs of the last dense layer"
    )
    group.add_argument(
        "--units",
        type=_count,
        metavar="D",
        help="inputs of the last dense layer, and 1 more where its bias counts",
    )
    # Absent where sets are named, whose manifests tell it.
    _add_feature_dtype(group, None)


def _add_feature_dtype(group: argparse._ActionsContainer, default: str | None) -> None:
    group.add_argument(
        "--feature_dtype",
        choices=("float32", "bfloat16", "float16"),
        default=default,
        help="what loss gradients and activations are rounded to and stored as (float32)",
    )


def _add_switch(group: argparse._ActionsContainer, name: str, told: str) -> None:
    """Adds a flag that is off where it is left out, and on without a value."""
    group.add_argument(
        name, nargs="?", const=True, default=False, type=_boolean, metavar="true|false", help=told
    )


def _add_overwrite(group: argparse._ActionsContainer) -> None:
    _add_switch(group, "--overwrite", "replace a complete result; its manifest goes first")


def _add_table(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--output_table",
        type=_table,
        metavar="PROJECT:DATASET.TABLE",
        help="table of BigQuery that the rows are written to as well; needs an --output on gs://",
    )
    group.add_argument(
        "--run_date",
        type=_date,
        metavar="YYYY-MM-DD",
        help="the day that the rows of --output_table are of (today, in UTC, for new ones)",
    )


def _add_examples(group: argparse._ActionsContainer, command: str) -> None:
    group.add_argument(
        "--input_keys",
        type=_names,
        metavar="KEYS",
        help="keys of the model's inputs, in its order (image; of "
        "a model with several inputs, their names)",
    )
    group.add_argument(
        "--label_key", default="label", metavar="KEY", help="key of the label (%(default)s)"
    )
    group.add_argument(
        "--id_key",
        metavar="KEY",
        help="key of a unique id; else ids are FILE#INDEX, which change when records are inserted",
    )
    group.add_argument(
        "--keep_keys",
        type=_names,
        default=(),
        metavar="KEYS",
        help="further keys to copy into the feature records",
    )
    group.add_argument(
        "--parse_fn",
        metavar="MODULE:FUNCTION",
        help="function from a serialized record to a mapping of the keys "
        "above, for other kinds of records",
    )
    modes = ("given", "predicted")
    if command == "influence":
        group.add_argument(
            "--train_labels",
            choices=modes,
            default="given",
            help="labels of the training examples: as given, "
            "or the last checkpoint's predictions (given)",
        )
        group.add_argument(
            "--test_labels",
            choices=modes,
            default="given",
            help="likewise for the test examples; "
            "predicted explains predictions without labels (given)",
        )
    elif command == "features":
        group.add_argument(
            "--labels",
            choices=modes,
            default="given",
            help="labels as given, or the last checkpoint's predictions (given)",
        )
    group.add_argument(
        "--base",
        type=_directory,
        metavar="DIR",
        help="feature set of an earlier run with the same flags: "
        "what it holds of examples unchanged in id and content is copied"
        if command == "features"
        else "result of an earlier run with the same flags: what "
        "its feature sets hold of unchanged examples is copied",
    )
    group.add_argument(
        "--max_rejected_fraction",
        type=_fraction,
        default=0.01,
        metavar="X",
        help="fail if a larger part of the examples is rejected (%(default)s)",
    )
    _add_switch(
        group, "--allow_truncated_files", "use a file whose tail cannot be read as far as it goes"
    )


def _add_model(group: argparse._ActionsContainer, required: bool) -> None:
    group.add_argument(
        "--checkpoints",
        required=required,
        metavar="GLOBS",
        help=".keras files, .weights.h5 files, or prefixes "
        "of TensorFlow checkpoints; a list without globs keeps its order, "
        "else the optimizer's step decides",
    )
    group.add_argument(
        "--model",
        metavar="SOURCE",
        help="architecture for weights: a .keras or .json file, or module:function",
    )
    group.add_argument(
        "--import",
        dest="imports",
        type=_names,
        default=(),
        metavar="MODULES",
        help="modules that register custom code, also on workers",
    )
    group.add_argument(
        "--layer", metavar="NAME", help="the last dense layer, where it is not found by itself"
    )
    group.add_argument(
        "--output_name", metavar="NAME", help="the output to explain, of a model with several"
    )
    _add_switch(
        group,
        "--per_token",
        "of a model whose last dense layer works on positions: make a record of each position "
        "that is not masked, id@position",
    )
    group.add_argument(
        "--loss",
        metavar="LOSS",
        help="loss, such as 'SparseCategoricalCrossentropy(from_logits=True)' (the compiled one)",
    )
    _add_rates(group)
    group.add_argument(
        "--include_bias",
        type=_boolean,
        default=True,
        metavar="true|false",
        help="whether the last layer's bias counts (true)",
    )
    group.add_argument(
        "--batch_size",
        type=_positive,
        metavar="N",
        help="examples per call of the model (256, fewer for large "
        "inputs); halved where they do not fit into memory",
    )
    _add_feature_dtype(group, "float32")
    group.add_argument(
        "--share_checkpoints",
        choices=("process", "machine"),
        default="process",
        help="load the checkpoints once per worker process, or "
        "once per machine, whose processes then send their batches to the one that "
        "has them (%(default)s)",
    )
    group.add_argument(
        "--accelerator",
        type=_accelerator,
        metavar="HINT",
        help="Beam's resource hint for the workers that run the model, and "
        "for no others, such as 'type:nvidia-l4;count:1'",
    )


def _add_rates(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--learning_rates",
        type=_rates,
        metavar="RATES",
        help="learning rate of each checkpoint, separated by commas, "
        "in their order (as their optimizers had them)",
    )


def _add_k(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--k",
        type=_positive,
        default=10,
        metavar="K",
        help="proponents and opponents of each test example (%(default)s)",
    )


def _add_normalize(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--normalize",
        choices=("none", "cosine", "relatif"),
        default="none",
        help="none; cosine: divide by both gradients' lengths; "
        "relatif: by the training example's (%(default)s)",
    )


def _add_scoring(group: argparse._ActionsContainer) -> None:
    _add_k(group)
    _add_normalize(group)
    _add_switch(
        group,
        "--sum_positions",
        "of features that are per token: score whole examples, by the sum over all pairs of their "
        "positions, instead of positions",
    )
    group.add_argument(
        "--memory_gb",
        type=_gigabytes,
        default=2.0,
        metavar="GB",
        help="memory for scoring on each machine (%(default)s)",
    )
    group.add_argument(
        "--test_rows_per_tile",
        type=_positive,
        metavar="N",
        help="size of the test blocks (planned from the memory)",
    )
    group.add_argument(
        "--train_rows_per_tile",
        type=_positive,
        metavar="N",
        help="size of the training ranges (planned from the memory)",
    )


def _add_suspects(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--min_suspicion",
        type=_fraction,
        default=0.5,
        metavar="X",
        help="how likely the label of a suspect is wrong, at least (%(default)s)",
    )
    group.add_argument(
        "--max_suspects_per_class",
        type=_positive,
        default=1000,
        metavar="N",
        help="list at most so many suspects of one label, the "
        "most suspicious; all are counted (%(default)s)",
    )
    group.add_argument(
        "--min_similarity",
        type=_fraction,
        default=0.99,
        metavar="X",
        help="how alike examples with different labels are to be told "
        "as duplicates, at least: the mean cosine of their activations about "
        "the mean (%(default)s)",
    )
    group.add_argument(
        "--max_suspect_fraction",
        type=_fraction,
        metavar="X",
        help="threshold: suspects among the examples, as a fraction (none)",
    )
    group.add_argument(
        "--max_appeared_suspects",
        type=_whole,
        metavar="N",
        help="threshold: suspects that --previous did not have (none)",
    )
    group.add_argument(
        "--max_shift",
        type=_fraction,
        metavar="X",
        help="threshold: Kolmogorov-Smirnov distance of a "
        "class's self-influence from that of --previous (none)",
    )
    _add_switch(
        group,
        "--fail_on_drift",
        "when a threshold is crossed, fail after everything is written, and end with exit status 3",
    )


def parse(command: str, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command's own flags; returns them and what is left, which are Beam's.

    A left-over that looks like one of our flags misspelt, or that cannot be a Dataflow job's, ends
    the program with status 2.
    """
    own = parser(command)
    args, left = own.parse_known_args(
        [_beams_labels(word) for word in argv] if command == "features" else argv
    )
    names = [option for action in own._actions for option in action.option_strings]
    for word, before in zip(left, ["", *left], strict=False):
        # Beam's flags may have their values as words of their own.
        if not word.startswith("-") and (not before.startswith("--") or "=" in before):
            own.error(
                f"unexpected word {word!r}: flags are --name=value, and globs are quoted so that "
                "the shell leaves them alone"
            )
    for flag in (
        word.split("=")[0]
        for word in left
        if word.startswith("--") and not word.startswith("--label=")
    ):
        close = difflib.get_close_matches(flag, names, n=1, cutoff=0.85)
        if close:
            own.error(f"unknown flag {flag}; did you mean {close[0]}?")
    if command == "plan":
        _check_planned(own, args)
    if command == "audit":
        _check_audited(own, args)
    if command == "influence" and args.sum_positions and not args.per_token:
        own.error(
            "--sum_positions adds up the positions of examples: they are told apart with "
            "--per_token"
        )
    if command == "export" and args.projection_of:
        for name in ("projection", "dimensions", "seed", "learning_rates", "allow_large_vectors"):
            if getattr(args, name) != own.get_default(name):
                own.error(
                    f"--projection_of and --{name} exclude each other: the projection is there "
                    "already"
                )
    if getattr(args, "run_date", None) and not args.output_table:
        own.error("--run_date dates the rows of a table: name it with --output_table")
    if getattr(args, "output_table", None) and args.output and not args.output.startswith("gs://"):
        own.error(
            f"--output_table needs an --output on gs://, where BigQuery reads the rows, found {args.output!r}"
        )
    wrong = dataflow.mistake(left)
    if wrong:
        own.error(wrong)
    return args, left


def _beams_labels(word: str) -> str:
    """Calls Beam's `--labels`, a job's labels, by its other name, since `features` has one of its
    own; a template's launcher passes it.
    """
    name, _, value = word.partition("=")
    return (
        f"--label={value}"
        if name == "--labels" and ("=" in value or value.startswith("{"))
        else word
    )


def _check_planned(own: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program unless either both feature sets are named or all that stands for them is
    given.
    """
    sets, counts = (
        [name for name in names if getattr(args, name) is not None]
        for names in (_PLANNED_SETS, _PLANNED_COUNTS)
    )
    instead_of_sets = counts + (["feature_dtype"] if args.feature_dtype else [])
    if sets and instead_of_sets:
        own.error(
            f"--{sets[0]} and --{instead_of_sets[0]} exclude each other: name feature sets, or give numbers for some that are not there yet"
        )
    if counts and args.sum_positions:
        own.error(
            f"--sum_positions needs --train_features and --test_features: --{counts[0]} tells nothing of positions"
        )
    missing = [
        f"--{name}"
        for name in (_PLANNED_COUNTS if counts else _PLANNED_SETS)
        if name not in sets + counts
    ]
    if missing:
        instead = (
            ""
            if sets or counts
            else f", or of sets that are not there yet {', '.join(f'--{name}' for name in _PLANNED_COUNTS)}"
        )
        own.error(f"missing {', '.join(missing)}{instead}")


def _check_audited(own: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program unless it is given either a feature set, or examples and checkpoints to
    extract one from.

    Thresholds that compare need something to compare with.
    """
    compared = [
        name for name in ("max_appeared_suspects", "max_shift") if getattr(args, name) is not None
    ]
    if compared and not args.previous:
        own.error(f"--{compared[0]} needs an audit to compare with: name it with --previous")
    if args.fail_on_drift and not compared and args.max_suspect_fraction is None:
        own.error(
            "--fail_on_drift needs a threshold: --max_suspect_fraction, --max_appeared_suspects or --max_shift"
        )
    if args.test_features and args.test_examples:
        own.error(
            "--test_features and --test_examples exclude each other: name a feature set, or examples to extract one from"
        )
    if args.slice_keys and not (args.test_features or args.test_examples):
        own.error("--slice_keys needs a test set: name it with --test_features or --test_examples")
    if args.features and args.examples:
        own.error(
            "--features and --examples exclude each other: name a feature set, or examples and checkpoints to extract one from"
        )
    if not args.features and not (args.examples and args.checkpoints):
        missing = (
            "--checkpoints"
            if args.examples
            else "--examples"
            if args.checkpoints
            else "--features, or --examples and --checkpoints"
        )
        own.error(f"missing {missing}")
    if args.features:
        (group,) = (group for group in own._action_groups if group.title == "suspects")
        kept = (
            "help",
            "features",
            "test_features",
            "slice_keys",
            "previous",
            "output",
            "output_table",
            "run_date",
            "overwrite",
            "learning_rates",
            "class_names",
            *(one.dest for one in group._group_actions),
        )
        for action in own._actions:
            if action.dest not in kept and getattr(args, action.dest) != action.default:
                own.error(
                    f"{action.option_strings[0]} says how features are extracted, and those of --features are there already"
                )
