"""Rows of benchmarks in one form each, whatever file they come from: checked, cleaned, with the right answer.

Each function takes a row whose columns have been checked and returns the row that a task's YAML reads, or None for a
row that the benchmark leaves out.
"""

import json
import re
from typing import Any

Row = dict[str, Any]
LETTERS = "ABCDE"


def clean(text: str) -> str:
    """Return a text as the harness's translated ARC, HellaSwag and TruthfulQA show it: WikiHow's mark-up is removed.

    Source: lm-evaluation-harness 0.4.13, lm_eval/tasks/okapi.
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _lettered(row: Row) -> list[str]:
    return [text for letter in LETTERS.lower() if (text := row.get(f"option_{letter}"))]


def arc(row: Row) -> Row:
    """Return question, choices and the place of the right one."""
    choices = [clean(text) for text in _lettered(row)]
    return {"question": clean(row["instruction"]), "choices": choices, "gold": LETTERS.index(row["answer"])}


def mmlu(row: Row) -> Row:
    """Return question, choices and the place of the right one."""
    return {"question": row["instruction"], "choices": _lettered(row), "gold": LETTERS.index(row["answer"])}


def hellaswag(row: Row) -> Row:
    """Return the beginning of a text, its continuations and the place of the right one."""
    text = f"{row['activity_label']}: {row['ctx_a']} {(row.get('ctx_b') or '').capitalize()}"
    return {"question": clean(text), "choices": [clean(ending) for ending in row["endings"]], "gold": int(row["label"])}


def truthfulqa(row: Row) -> Row:
    """Return question, answers, and for each whether it is true."""
    return {
        "question": clean(row["question"]),
        "choices": list(row["mc2_targets_choices"]),
        "labels": [int(label) for label in row["mc2_targets_labels"]],
    }


def exam(row: Row) -> Row:
    """Return an exam's question: letters, texts and the right letter."""
    texts = [text if place else text.rstrip() for place, text in enumerate(reversed(row["choices"]["text"]))][::-1]
    return {
        "id": row["id"],
        "question": row["question"],
        "letters": list(row["choices"]["label"]),
        "choices": texts,
        "answer": row["answerKey"],
    }


def enem_record(row: Row) -> Row | None:
    """Return an ENEM question of the form of https://github.com/piresramon/gpt-4-enem in that of the leaderboard.

    Questions with pictures are left out, as there. The texts are not the leaderboard's letter by letter, so a score on
    them is not its score.
    """
    raw = json.loads(row["raw"]) if isinstance(row.get("raw"), str) else row.get("raw") or {}
    if raw.get("has_associated_images"):
        return None
    texts = raw.get("options") or [" ".join(text.split())[1:].strip() for text in row["alternatives"]]
    if len(texts) != len(LETTERS) or not all(texts):
        return None
    question = " ".join(part for part in (row["context"], row["question"]) if part)
    return {
        "id": row["id"].removeprefix("ENEM_"),
        "question": question,
        "choices": {"text": texts, "label": list(LETTERS)},
        "answerKey": row["label"].upper(),
    }


def pair(row: Row) -> Row:
    """Return premise, hypothesis, whether one follows from the other, and how alike they are."""
    return {
        "premise": row["premise"],
        "hypothesis": row["hypothesis"],
        "answer": ("Não", "Sim")[int(row["entailment_judgment"])],
        "similarity": float(row["relatedness_score"]),
        "similarity_text": f"{row['relatedness_score']:.1f}".replace(".", ","),
    }


def answered_question(row: Row) -> Row:
    """Return question, answer, and whether the answer is one."""
    return {"question": row["question"], "reply": row["answer"], "answer": ("Não", "Sim")[int(row["label"])]}


def yes_or_no(row: Row) -> Row:
    """Return a text and whether it is what the task asks for."""
    return {"sentence": row["sentence"], "answer": ("Não", "Sim")[int(row["label"])]}


SENTIMENTS = {"Positive": "Positivo", "Neutral": "Neutro", "Negative": "Negativo"}


def sentiment(row: Row) -> Row:
    """Return a text and its sentiment in Portuguese."""
    return {"sentence": row["sentence"], "answer": SENTIMENTS[row["label"]]}


def last_word(row: Row) -> Row | None:
    """Return a text without its last word, and the word; None where either is empty."""
    text, word = row["sentence"].rstrip(), row["last_word"].strip()
    if text.endswith(" " + word):  # some files keep the word in the text
        text = text[: -len(word)].rstrip()
    return {"sentence": text, "last_word": word} if text and word else None
