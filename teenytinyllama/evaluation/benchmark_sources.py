"""Where the rows of each benchmark are: Hub dataset, files of a local folder, columns, and the fixed solved examples.

Sources of the identifiers, splits and examples: lm-evaluation-harness 0.4.13 (lm_eval/tasks/okapi) for the translated
suite, https://github.com/eduagarcia/lm-evaluation-harness-pt (lm_eval/tasks/portuguese, oab_exams) for the leaderboard,
the datasets' cards for CALAME-PT and LAMBADA-PT.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from ..evaluation import benchmark_rows as rows
from .benchmark_rows import LETTERS, SENTIMENTS, Row

Kind = Literal["text", "texts", "list", "options", "number", "letter"]


@dataclass(frozen=True)
class Column:
    """What a column has to hold.

    Attributes:
        kind: a text, a list of texts, any list, an exam's choices (`{text: [...], label: [...]}`), a number, or the
            letter of an answer.
        allowed: the only values there may be, if that is known.
        optional: whether rows may lack it.
        may_be_empty: whether cells may be empty, though the column has to be there.
    """

    kind: Kind = "text"
    allowed: tuple[Hashable, ...] | None = None
    optional: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True)
class DataSplit:
    """Some rows of a dataset: a split on the Hub, or a local file by its name without suffix, the best first."""

    split: str
    stems: tuple[str, ...]


@dataclass(frozen=True)
class Shots:
    """The solved examples in front of a question.

    Attributes:
        part: where they are.
        column: chosen by this column, in the order of `ids`; None: by their places in the file, or all.
        ids: those that are used, in their order; empty: all rows, from which the harness draws or takes the first.
        held_back: ids that are no questions either, because the benchmark keeps them for examples.
    """

    part: DataSplit
    column: str | None = None
    ids: tuple[Hashable, ...] = ()
    held_back: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Another form in which local files come.

    Attributes:
        columns: by which it is known and which are checked.
        convert: to the form of the Hub's dataset; None leaves a row out.
    """

    columns: dict[str, Column]
    convert: Callable[[Row], Row | None]


@dataclass(frozen=True)
class Source:
    """One dataset of a benchmark.

    Attributes:
        dataset_id: on the Hub; None for rows that we make.
        test: the questions.
        columns: of the questions and of the examples.
        canonical: makes the row that the task's YAML reads.
        config: the dataset's configuration on the Hub.
        files: a file of the dataset on the Hub that has no configuration.
        shots: the examples.
        layouts: other forms of local files.
        shuffled_stems: local files whose rows are sorted by label; they are shuffled with a fixed seed.
    """

    dataset_id: str | None
    test: DataSplit
    columns: dict[str, Column]
    canonical: Callable[[Row], Row | None]
    config: str | None = None
    files: str | None = None
    shots: Shots | None = None
    layouts: tuple[Layout, ...] = ()
    shuffled_stems: tuple[str, ...] = field(default=())


_TEXT, _NUMBER = Column(), Column("number")
_LABEL = Column("number", allowed=(0, 1))


def _lettered(letters: str) -> dict[str, Column]:
    options = {
        f"option_{letter.lower()}": Column(optional=letter in "CDE", may_be_empty=letter in "AB") for letter in letters
    }
    return {"instruction": _TEXT, **options, "answer": Column("letter", allowed=tuple(letters))}


_EXAM = {"id": _TEXT, "question": _TEXT, "choices": Column("options"), "answerKey": Column("letter")}
_ENEM_RECORD = Layout(
    {"id": _TEXT, "context": Column(optional=True), "question": Column(optional=True), "alternatives": Column("list"),
     "label": Column("letter", allowed=tuple(LETTERS))},
    rows.enem_record,
)  # fmt: skip
# As published by its authors: one file, sorted by label, without the benchmark's split.
_HATEBR_FILE = Layout(
    {"text": _TEXT, "label": _LABEL},
    lambda row: {"idx": row["row"], "sentence": row["text"], "label": row["label"]},
)
_SENTENCES = {"idx": _NUMBER, "sentence": _TEXT, "label": _LABEL}
_WORDS = {"sentence": _TEXT, "last_word": _TEXT}
_ASSIN2_SHOTS = (1, 3251, 2, 3252, 3, 4, 5, 6, 3253, 7, 3254, 3255, 3256, 8, 9)
_BLUEX_SHOTS = ("USP_2018_3", "UNICAMP_2018_2", "USP_2018_35", "UNICAMP_2018_16", "USP_2018_89")
_ENEM_SHOTS = ("2022_21", "2022_88", "2022_143")
_OAB_SHOTS = tuple(f"2010-01_{number}" for number in (1, 11, 13, 23, 26, 28, 38, 48, 58, 68, 76, 83, 85, 91, 99))
_FAQUAD_SHOTS = (1893, 949, 663, 105, 1169, 2910, 2227, 2813, 974, 558, 1503, 1958, 2918, 601, 1560)
_HATEBR_SHOTS = (48, 44, 36, 20, 3511, 88, 3555, 16, 56, 3535, 60, 40, 3527, 4, 76, 3579, 3523, 3551, 68, 3503, 84,
                 3539, 64, 3599, 80)  # fmt: skip
_HATE_SPEECH_SHOTS = (52, 50, 39, 28, 3, 105, 22, 25, 60, 11, 66, 41, 9, 4, 91, 42, 7, 20, 76, 1, 104, 13, 67, 54, 97)
_BENCHMARK = "eduagarcia/portuguese_benchmark"

SOURCES: dict[str, Source] = {
    "arc": Source(
        "alexandrainst/m_arc",
        DataSplit("test", ("arc_pt_test",)),
        _lettered(LETTERS),
        rows.arc,
        config="pt",
        shots=Shots(DataSplit("train", ("arc_pt_train",))),
    ),
    "hellaswag": Source(
        "alexandrainst/m_hellaswag",
        DataSplit("val", ("hellaswag_pt_val", "hellaswag_pt_validation", "hellaswag_pt")),
        {"activity_label": _TEXT, "ctx_a": _TEXT, "ctx_b": Column(optional=True), "endings": Column("texts"),
         "label": Column(allowed=("0", "1", "2", "3", 0, 1, 2, 3))},
        rows.hellaswag,
        config="pt",
    ),
    "mmlu": Source(
        "alexandrainst/m_mmlu",
        DataSplit("test", ("mmlu_pt_test", "mmlu_pt_val")),
        _lettered("ABCD"),
        rows.mmlu,
        config="pt",
        shots=Shots(DataSplit("train", ("mmlu_pt_dev", "mmlu_pt_train"))),
    ),
    "truthfulqa": Source(
        "alexandrainst/m_truthfulqa",
        DataSplit("val", ("truthfulqa_pt", "truthfulqa_pt_val")),
        {"question": _TEXT, "mc2_targets_choices": Column("texts"), "mc2_targets_labels": Column("list")},
        rows.truthfulqa,
        config="pt",
    ),
    "enem": Source(
        "eduagarcia/enem_challenge",
        DataSplit("train", ("enem_challenge", "enem", "enem_2022")),
        _EXAM,
        rows.exam,
        shots=Shots(DataSplit("train", ("enem_challenge", "enem", "enem_2022")), "id", _ENEM_SHOTS, _ENEM_SHOTS),
        layouts=(_ENEM_RECORD,),
    ),
    "bluex": Source(
        "eduagarcia-temp/BLUEX_without_images",
        DataSplit("train", ("bluex",)),
        _EXAM,
        rows.exam,
        shots=Shots(DataSplit("train", ("bluex",)), "id", _BLUEX_SHOTS[:3], _BLUEX_SHOTS),
    ),
    "oab": Source(
        "eduagarcia/oab_exams",
        DataSplit("train", ("oab_exams", "oab")),
        _EXAM,
        functools.partial(rows.exam, letters="ABCD"),
        shots=Shots(DataSplit("train", ("oab_exams", "oab")), "id", _OAB_SHOTS[:3], _OAB_SHOTS),
    ),
    "assin2": Source(
        "nilc-nlp/assin2",
        DataSplit("test", ("assin2_test",)),
        {"sentence_pair_id": _NUMBER, "premise": _TEXT, "hypothesis": _TEXT, "relatedness_score": _NUMBER,
         "entailment_judgment": _LABEL},
        rows.pair,
        shots=Shots(DataSplit("train", ("assin2_train",)), "sentence_pair_id", _ASSIN2_SHOTS),
    ),
    "faquad_nli": Source(
        "ruanchaves/faquad-nli",
        DataSplit("test", ("faquad_nli_test",)),
        {"question": _TEXT, "answer": _TEXT, "label": _LABEL},
        rows.answered_question,
        shots=Shots(DataSplit("train", ("faquad_nli_train",)), None, _FAQUAD_SHOTS),
    ),
    "hatebr": Source(
        _BENCHMARK,
        DataSplit("test", ("hatebr_offensive_test", "hatebr_test", "hatebr")),
        _SENTENCES,
        rows.yes_or_no,
        config="HateBR_offensive_binary",
        shots=Shots(DataSplit("train", ("hatebr_offensive_train", "hatebr_train", "hatebr")), "idx", _HATEBR_SHOTS),
        layouts=(_HATEBR_FILE,),
        shuffled_stems=("hatebr",),
    ),
    "hate_speech": Source(
        _BENCHMARK,
        DataSplit("test", ("portuguese_hate_speech_test",)),
        _SENTENCES,
        rows.yes_or_no,
        config="Portuguese_Hate_Speech_binary",
        shots=Shots(DataSplit("train", ("portuguese_hate_speech_train",)), "idx", _HATE_SPEECH_SHOTS),
    ),
    "tweetsentbr": Source(
        "eduagarcia/tweetsentbr_fewshot",
        DataSplit("test", ("tweetsentbr_test",)),
        {"sentence": _TEXT, "label": Column(allowed=tuple(SENTIMENTS))},
        rows.sentiment,
        shots=Shots(DataSplit("train", ("tweetsentbr_train",))),
    ),
    "calame": Source(
        "NOVA-vision-language/calame-pt",
        DataSplit("train", ("calame_pt", "calame", "calamept_all")),
        _WORDS,
        rows.last_word,
        files="calamept_all.jsonl",
    ),
    "lambada": Source(
        "TucanoBR/lambada-pt", DataSplit("train", ("lambada_pt", "lambada")), _WORDS, rows.last_word
    ),
    "cloze": Source(None, DataSplit("held out", ("cloze",)), _WORDS, rows.last_word),
}  # fmt: skip
