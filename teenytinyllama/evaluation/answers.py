"""Reading the answer out of what a model wrote, as the Open Portuguese LLM Leaderboard reads it.

The rules are facts of the benchmark: another reading gives another score.

Source: https://github.com/eduagarcia/lm-evaluation-harness-pt, its filters `find_choices`, `find_similar_label` and
`number_filter` and the chains of them that its tasks declare. `textdistance` and `unidecode` are replaced by functions
below that agree with them on Portuguese.
"""

import re
import unicodedata
from collections.abc import Sequence

UNPARSABLE = "[invalid]"  # counts as an answer of its own: never right, and in macro-F1 a class without hits
_CUTS = (".", ",", ";", ":", "(", ")", "[", "]", "\n")


def remove_accents(text: str) -> str:
    """Return the text in ASCII: letters without their accents, other signs dropped."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def find_choice(text: str, letters: str, mark: str = ".") -> str:
    """Return the letter that an answer to a multiple-choice question names, or `UNPARSABLE`.

    Args:
        text: what the model wrote.
        letters: the letters there are, such as `ABCDE`.
        mark: the sign behind the letters in the question, which is looked for first.
    """
    text = remove_accents(re.sub(r"\s+", " ", text)).strip()
    if len(text) == 1 and text in letters:
        return text
    patterns = (
        rf"(?:[Ll]etra|[Aa]lternativa|[Rr]esposta(?: ?[Cc]orreta(?: e)?)?|[Oo]pcao):? ([{letters}])\b",
        rf"\b([{letters}]){re.escape(mark)}",
        rf"\b([{letters}]) ?[.):-]",
        rf"\b([{letters}])$",
        rf"\b([{letters}])\b",
    )
    for pattern in patterns:
        if match := re.search(pattern, text):
            return match.group(1)
    return UNPARSABLE


def edit_distance(first: str, second: str) -> int:
    """Return how many letters have to be added, dropped or replaced to turn one word into the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


def find_similar_label(text: str, labels: Sequence[str]) -> str:
    """Return the label that an answer names or resembles, or `UNPARSABLE`.

    An answer that holds exactly one of the labels names it. Otherwise the beginning of the answer is compared with
    every label, letter by letter, and at least half of the letters have to agree.
    """
    plain = [remove_accents(label.strip().lower()) for label in labels]
    answer = remove_accents(text.strip().lower())
    if answer in plain:
        return labels[plain.index(answer)]
    if not answer:
        return UNPARSABLE
    named = [label for label, name in zip(labels, plain, strict=True) if name in answer]
    if len(named) == 1:
        return named[0]
    for sign in _CUTS:
        answer = answer.split(sign, 1)[0]
    answer = answer[: max(map(len, plain))]
    similarities = [1 - edit_distance(answer, name) / max(len(answer), len(name)) for name in plain]
    best = max(similarities)
    return labels[similarities.index(best)] if best >= 0.5 else UNPARSABLE


def find_number(text: str, lowest: float, highest: float) -> float | None:
    """Return the number that an answer gives, clipped to a range, or None.

    All digits of the answer are read as one number, with a decimal point or comma between the first two digits that
    have one between them.
    """
    digits = re.sub(r"[^0-9.]", "", text.replace(",", "."))
    match = re.search(r"[0-9]\.[0-9]", digits)
    if match:
        whole, fraction = digits[: match.start() + 1], digits[match.start() + 2 :]
        digits = whole.replace(".", "") + "." + fraction.replace(".", "")
    else:
        digits = digits.replace(".", "")
    return min(max(float(digits), lowest), highest) if digits else None
