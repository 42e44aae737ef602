"""Flags of what a command reads and writes: examples, feature sets, results, a table."""

from __future__ import annotations

from pipeline.flags.declarations import examples, kinds, model, planning
from pipeline.flags.declarations.flag import (
    REQUIRED,
    Excludes,
    Flag,
    Needs,
    Use,
    commands,
    names_of,
    required_by,
)

_WITH_TABLE = commands("influence", "score", "audit", "plan")
_FEATURES_HELP = "feature set of the training examples, as `tracin features` wrote it"
_BESIDE = "{flag} and {other} exclude each other: "

# Sets that exist, and numbers of such that do not exist yet.
_PLANNED = Use(
    excludes=(
        Excludes(
            (*names_of(planning.COUNTS), "feature_dtype"),
            _BESIDE + "name feature sets, or give numbers for some that are not there yet",
        ),
    )
)
# Says nothing of how features are extracted, as all else of examples and model does.
_EXTRACTION = tuple(
    name for name in names_of((*examples.FLAGS, *model.FLAGS)) if name != model.LEARNING_RATES.name
)

FLAGS = (
    Flag(
        "train_examples",
        kinds.GLOBS,
        "files of the training examples: TFRecord, Parquet or .npz; globs separated by commas",
        required_by("influence"),
        "data",
    ),
    Flag(
        "train_features",
        kinds.INPUT_DIRECTORY,
        _FEATURES_HELP,
        {
            "score": REQUIRED,
            "plan": _PLANNED,
            "index": Use(True, help="feature set of the training examples"),
            "search": Use(True, help="feature set of the training examples"),
        },
        "data",
    ),
    Flag(
        "previous",
        kinds.INPUT_DIRECTORY,
        "an earlier audit to compare with",
        commands("audit"),
        "data",
    ),
    Flag(
        "test_features",
        kinds.INPUT_DIRECTORY,
        "feature set of the test examples",
        {
            "score": REQUIRED,
            "plan": _PLANNED,
            "search": REQUIRED,
            "audit": Use(
                help="feature set of a test set, with the same model: which training examples help "
                "or hurt it, and its labels, most",
                excludes=(
                    Excludes(
                        ("test_examples",),
                        _BESIDE + "name a feature set, or examples to extract one from",
                    ),
                ),
            ),
        },
        "data",
    ),
    Flag(
        "test_examples",
        kinds.GLOBS,
        "files of the test examples",
        {
            "influence": REQUIRED,
            "audit": Use(
                help="or files of the test examples, to extract it from; with --examples and "
                "--checkpoints"
            ),
        },
        "data",
    ),
    Flag(
        "slice_keys",
        kinds.KEYS,
        "keys that the test set keeps (--keep_keys): each of their values is a slice of it, beside "
        "its labels, on which influence is measured",
        commands("audit"),
        "data",
        default=(),
        needs=(
            Needs(
                ("test_features", "test_examples"),
                "needs a test set: name it with --test_features or --test_examples",
            ),
        ),
    ),
    Flag(
        "features",
        kinds.INPUT_DIRECTORY,
        _FEATURES_HELP,
        {
            "export": Use(True, help="feature set, as `tracin features` wrote it"),
            "audit": Use(
                excludes=(
                    Excludes(
                        ("examples",),
                        _BESIDE
                        + "name a feature set, or examples and checkpoints to extract one from",
                    ),
                    Excludes(
                        ("test_examples", *_EXTRACTION),
                        "{other} says how features are extracted, and those of {flag} are there "
                        "already",
                    ),
                )
            ),
        },
        "data",
    ),
    Flag(
        "examples",
        kinds.GLOBS,
        "TFRecord files of tf.train.Example, Parquet or .npz files; globs separated by commas",
        {
            "features": REQUIRED,
            "audit": Use(
                help="or files of the training examples, to extract it from: TFRecord, Parquet or "
                ".npz"
            ),
        },
        "data",
    ),
    Flag(
        "index",
        kinds.INPUT_DIRECTORY,
        "index of the training set, by `tracin index`",
        required_by("search"),
        "data",
    ),
    Flag(
        "test_ids",
        kinds.IDS,
        "only these test examples, separated by commas (all)",
        commands("search"),
        "data",
        default=(),
    ),
    Flag(
        "projection_of",
        kinds.INPUT_DIRECTORY,
        "vectors, or an index, of the training set: these will be comparable with them; instead of "
        "the flags below",
        commands("export"),
        "data",
        excludes=(
            Excludes(
                ("projection", "dimensions", "seed", "learning_rates", "allow_large_vectors"),
                _BESIDE + "the projection is there already",
            ),
        ),
    ),
    Flag(
        "output",
        kinds.OUTPUT_DIRECTORY,
        "directory for the results, on any filesystem that Beam writes",
        {
            **required_by("influence", "features", "score", "audit", "export", "index", "search"),
            "plan": Use(help="as for `tracin score`; nothing is looked up or written there"),
            "demo": Use(
                group="",
                default="tracin-demo",
                help="directory for data, checkpoints, results and picture ({default})",
            ),
        },
        "data",
    ),
    Flag(
        "overwrite",
        kinds.SWITCH,
        "replace a complete result; its manifest goes first",
        {
            **commands("influence", "features", "score", "audit", "export", "index", "search"),
            **commands("plan"),
            "demo": Use(group=""),
        },
        "data",
        default=False,
    ),
    Flag(
        "output_table",
        kinds.TABLE,
        "table of BigQuery that the rows are written to as well; needs an --output on gs://",
        _WITH_TABLE,
        "data",
    ),
    Flag(
        "run_date",
        kinds.DATE,
        "the day that the rows of --output_table are of (today, in UTC, for new ones)",
        _WITH_TABLE,
        "data",
        needs=(Needs(("output_table",), "dates the rows of a table: name it with --output_table"),),
    ),
    Flag(
        "class_names",
        kinds.FILE,
        "text file with the names of the classes, one a line, for the report",
        commands("influence", "score", "audit", "search"),
        "data",
    ),
)
