"""A few rows of our own in the form of each benchmark's dataset, with the identifiers that its examples have."""

import json
from pathlib import Path
from typing import Any

from teenytinyllama.evaluation.config import SOURCES

THINGS = ["gato", "cavalo", "barco", "jardim", "livro", "pão", "rio", "sino"]
PLACES = ["na casa", "no campo", "na praia", "na rua", "no mercado"]


def _choice(number: int) -> dict[str, Any]:
    names = [THINGS[(number + step) % len(THINGS)] for step in range(4)]
    options = {f"option_{letter}": f"o {name} {PLACES[number % 5]}" for letter, name in zip("abcd", names, strict=True)}
    return {"id": f"q{number}", "instruction": f"O que a menina viu {PLACES[number % 5]}?", **options, "option_e": None,
            "answer": "ABCD"[(number * 3 + number // 5) % 4]}  # fmt: skip


def _exam(identity: str, number: int, letters: str) -> dict[str, Any]:
    texts = [f"o {THINGS[(number + step) % 8]} {PLACES[step]}" for step in range(len(letters))]
    return {"id": identity, "question": f"O que se viu {PLACES[number % 5]}?",
            "choices": {"text": texts, "label": list(letters)}, "answerKey": letters[number * 2 % len(letters)]}  # fmt: skip


def _sentence(number: int) -> str:
    return f"O {THINGS[number % 8]} estava {PLACES[number % 5]}."


def _exams(name: str, letters: str, count: int) -> list[dict[str, Any]]:
    held_back = SOURCES[name].shots.held_back
    ids = [*held_back, *(f"2015-{number}" for number in range(count))]
    return [_exam(identity, number, letters) for number, identity in enumerate(ids)]


def _labelled(ids: tuple, start: int = 0) -> list[dict[str, Any]]:
    return [{"idx": idx, "sentence": _sentence(start + number), "label": number % 2} for number, idx in enumerate(ids)]


def _pairs(ids: tuple, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"sentence_pair_id": identity, "premise": _sentence(start + number), "hypothesis": _sentence(number * 3),
         "relatedness_score": 1 + number * 7 % 41 / 10, "entailment_judgment": number % 2}
        for number, identity in enumerate(ids)
    ]  # fmt: skip


def all_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of each local file, by its name without suffix."""
    faquad = SOURCES["faquad_nli"].shots.ids
    answers = [{"question": f"Onde estava o {THINGS[n % 8]}?", "answer": _sentence(n), "label": int(n % 4 == 0)}
               for n in range(max(faquad) + 1)]  # fmt: skip
    tweets = [
        {"sentence": _sentence(n), "label": ("Positive", "Neutral", "Negative", "Positive")[n % 4]} for n in range(30)
    ]
    words = [
        {"sentence": f"O {THINGS[n % 8]} da menina estava", "last_word": ("ali", "longe", "ali")[n % 3]}
        for n in range(12)
    ]
    return {
        "arc_pt_test": [_choice(n) for n in range(12)],
        "arc_pt_train": [_choice(n) for n in range(30, 60)],
        "mmlu_pt_test": [_choice(n) for n in range(8)],
        "mmlu_pt_dev": [_choice(n) for n in range(30, 60)],
        "hellaswag_pt_val": [
            {"activity_label": "Passeio", "ctx_a": "A menina saiu.", "ctx_b": "ela viu",
             "endings": [f"o {THINGS[(n + step) % 8]} {PLACES[step]}" for step in range(4)], "label": str(n % 4)}
            for n in range(10)
        ],
        "truthfulqa_pt": [
            {"question": f"Onde vive o {THINGS[n % 8]}?", "mc2_targets_choices": [PLACES[0], PLACES[1] + " longe", PLACES[2]],
             "mc2_targets_labels": [1, n % 2, 0]}
            for n in range(8)
        ],
        "enem_challenge": _exams("enem", "ABCDE", 9),
        "bluex": _exams("bluex", "ABCDE", 9),
        "oab_exams": _exams("oab", "ABCD", 9),
        "assin2_train": _pairs(SOURCES["assin2"].shots.ids),
        "assin2_test": _pairs(tuple(range(10)), 5),
        "faquad_nli_train": answers,
        "faquad_nli_test": answers[:13],
        "hatebr_offensive_train": _labelled(SOURCES["hatebr"].shots.ids),
        "hatebr_offensive_test": _labelled(tuple(range(11)), 3),
        "portuguese_hate_speech_train": _labelled(SOURCES["hate_speech"].shots.ids),
        "portuguese_hate_speech_test": _labelled(tuple(range(9)), 5),
        "tweetsentbr_train": tweets,
        "tweetsentbr_test": tweets[:10],
        "calame_pt": words,
        "lambada_pt": [{**row, "sentence": f"{row['sentence']} {row['last_word']}"} for row in words],
    }  # fmt: skip


def write_rows(folder: Path, **changed: list[dict[str, Any]] | None) -> Path:
    """Write the files of all benchmarks; `changed` replaces one, or leaves it out (None)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {**all_rows(), **changed}.items():
        if rows is not None:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
