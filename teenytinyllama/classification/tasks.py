"""The tasks of `ttl classify`: where their rows are, which columns and labels they have, and what was published."""

from dataclasses import dataclass, field

from ..checks import InputError, near_name

LOCAL = "local"
# The Hub keeps a parquet copy of every dataset under this revision, as <config>/<split>/0000.parquet, also of those
# that are made by a script, which nobody should have to run.
PARQUET_REVISION = "refs/convert/parquet"
PAPER = "TeenyTinyLlama, arXiv 2401.16640, Table 5"
# A model's figures in that table by task: accuracy on the test set at the epoch that was best on the test set.
# Source: the "Fine-Tuning Comparisons" of the model cards in Nkluge-correa/TeenyTinyLlama (commit 8d3ae2d8).
_PAPER_TASKS = ("imdb_pt", "faquad_nli", "hatebr", "assin2", "agnews_pt")
_PAPER_ACCURACY = {
    "BERTimbau-large": (0.9358, 0.9226, 0.9157, 0.8897, 0.9411),
    "BERTimbau-base": (0.9222, 0.9307, 0.9128, 0.8745, 0.9419),  # "small" there
    "TTL-460m": (0.9164, 0.9118, 0.9228, 0.8643, 0.9442),
    "TTL-160m": (0.9114, 0.9000, 0.9071, 0.8578, 0.9405),
}


@dataclass(frozen=True)
class Task:
    """A classification of texts or of pairs of texts.

    Attributes:
        name: on the command line.
        title: as it is shown.
        dataset_id: on the Hub; empty for local files.
        text_columns: joined by an empty line where there are several.
        pair_column: the second text; empty for single texts.
        label_column: holds numbers from 0, booleans or the names of `labels`.
        labels: names in the order of their numbers; empty: those of the training rows.
        dataset_config: its configuration on the Hub; empty for the only one.
        max_length: tokens to which the paper cuts this task; None for the model's context.
        hub_splits: splits on the Hub; what is missing is cut from `train`, see `splits`.
    """

    name: str
    title: str
    dataset_id: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] = ()
    pair_column: str = ""
    dataset_config: str = ""
    max_length: int | None = None
    hub_splits: tuple[str, ...] = field(default=("train", "validation", "test"))

    @property
    def paper(self) -> dict[str, float]:
        """Return the paper's accuracy of each model, a fraction; empty where the paper has none."""
        if self.name not in _PAPER_TASKS:
            return {}
        place = _PAPER_TASKS.index(self.name)
        return {model: figures[place] for model, figures in _PAPER_ACCURACY.items()}


# Datasets, columns, order of labels and the cut at 256 tokens: the training scripts in the model cards named above;
# SIB-200 (arXiv 2309.07445) is not in the paper. Labels are named here, in Portuguese.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("imdb_pt", "IMDB-pt", "christykoh/imdb_pt", ("text",), "label", ("negativo", "positivo"), max_length=256,
             hub_splits=("train", "test")),
        Task("faquad_nli", "FaQuAD-NLI", "ruanchaves/faquad-nli", ("question",), "label", ("inadequada", "adequada"),
             pair_column="answer"),
        Task("hatebr", "HateBR", "ruanchaves/hatebr", ("instagram_comments",), "offensive_language",
             ("não ofensivo", "ofensivo")),
        Task("assin2", "ASSIN2 RTE", "nilc-nlp/assin2", ("premise",), "entailment_judgment",
             ("sem acarretamento", "acarretamento"), pair_column="hypothesis"),
        Task("agnews_pt", "AgNews-pt", "maritaca-ai/ag_news_pt", ("title", "text"), "label",
             ("mundo", "esportes", "negócios", "tecnologia"), max_length=256, hub_splits=("train", "test")),
        Task("sib200", "SIB-200 (por_Latn)", "Davlan/sib200", ("text",), "category",
             ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"),
             dataset_config="por_Latn"),
        Task(LOCAL, "local files", "", ("text",), "label", hub_splits=()),
    )
}  # fmt: skip


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(
            f"task={name}: unknown task.{near_name(name, TASKS)} Known are {', '.join(TASKS)}; `{LOCAL}` takes files "
            "of your own with --train_file."
        )
    return TASKS[name]
