"""Superwords: one entry for a sequence of function words, such as `▁de▁um` or `▁o▁que▁se`.

Portuguese writes many pairs of function words as one (do, na, pelo, numa); these entries go on with it. Only words of
the closed list below take part, so that the tokens of a text do not depend on whether a content word follows: a prompt
and its continuation are cut where they were cut in training. Superwords have the highest ids. Joins inside words
therefore always go first, and the ids of a text are the ids of its words, then joined within runs of function words.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

from .vocabulary import NUM_RESERVED_TOKENS, SPACE_MARK

MAX_WORDS = 4  # in a superword; longer ones hardly occur
# One entry in 32: 1,000 of 32,000. On 121 MB of mixed text 500, 1,000, 2,000 and 4,000 of 32,000 took 3.9, 4.2, 4.3 and
# 3.7 % fewer tokens than none; more of them join more places where a text can be cut (docs/lab-log.md).
ENTRIES_PER_SUPERWORD = 32
MIN_RUN_COUNT = 2  # a sequence seen once says nothing about the language

# Articles, prepositions and their contractions, pronouns, conjunctions, common adverbs, quantifiers and auxiliaries.
_WORDS = """
o a os as um uma uns umas de em por para com sem sob sobre entre até desde contra após ante perante segundo conforme
durante mediante do da dos das no na nos nas ao à aos às pelo pela pelos pelas dum duma num numa nuns numas
este esta estes estas esse essa esses essas aquele aquela aqueles aquelas isto isso aquilo
deste desta destes destas desse dessa desses dessas daquele daquela daqueles daquelas disto disso daquilo
neste nesta nestes nestas nesse nessa nesses nessas naquele naquela naqueles naquelas nisto nisso naquilo àquele àquela
eu tu ele ela nós eles elas você vocês me te se lhe lhes vos mim ti si comigo consigo dele dela deles delas
nele nela neles nelas meu minha meus minhas teu tua seu sua seus suas nosso nossa nossos nossas
que quem qual quais cujo cuja cujos cujas onde quando como quanto quanta quantos quantas
e ou mas nem porém porque pois logo portanto embora enquanto caso
não já só mais menos muito muita muitos muitas pouco tão tanto também ainda sempre nunca bem mal aqui ali lá assim então
depois antes agora todo toda todos todas outro outra outros outras algum alguma alguns algumas nenhum nenhuma cada tudo
nada mesmo mesma mesmos mesmas tal tais
é são era eram foi foram ser sendo sido seja será está estão estava estar ter tem têm tinha há havia
pode podem deve devem vai
""".split()  # noqa: SIM905
FUNCTION_WORDS = tuple(dict.fromkeys([*_WORDS, *(word.capitalize() for word in _WORDS)]))
# A word with more letters than this is no function word: between it and the next one no superword crosses.
LONGEST_FUNCTION_WORD = max(map(len, FUNCTION_WORDS))
_FIRST_CODE = 0xE000  # private use area: each function word becomes one character while sequences are learnt


def default_num_superwords(vocab_size: int) -> int:
    """Return how many superwords a vocabulary gets unless told otherwise."""
    return vocab_size // ENTRIES_PER_SUPERWORD


def function_word_pieces(vocabulary: Iterable[str]) -> list[str]:
    """Return the function words (with their mark) that are whole pieces of the vocabulary, in the order of the list."""
    pieces = set(vocabulary)
    return [SPACE_MARK + word for word in FUNCTION_WORDS if SPACE_MARK + word in pieces]


def learn_superwords(texts: Iterable[str], pieces: list[str], how_many: int) -> list[str]:
    """Learn the most frequent sequences of 2 to 4 of the words, best first.

    Byte-pair encoding one level up: its texts are runs of such words, its characters are the words.

    Args:
        texts: the texts to count in, read once.
        pieces: the words to join, each a whole piece of the vocabulary and with its mark: `function_word_pieces`.
        how_many: the most superwords wanted; fewer when the texts have fewer.

    Returns:
        Superwords such as `▁de▁um`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not pieces or how_many < 1:
        return []
    words = [piece[1:] for piece in pieces]
    codes = {word: chr(_FIRST_CODE + index) for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(codes) + how_many,
        min_frequency=MIN_RUN_COUNT,
        initial_alphabet=list(codes.values()),
        limit_alphabet=len(codes),
        max_token_length=MAX_WORDS + 1,  # `tokenizers` learns pieces strictly shorter than this
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(_coded_runs(texts, codes), trainer)
    learnt = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    marked = {ord(code): SPACE_MARK + word for word, code in codes.items()}
    return [run.translate(marked) for run, _ in learnt if len(run) > 1]


def _coded_runs(texts: Iterable[str], codes: dict[str, str]) -> Iterator[str]:
    """Yield for each text its runs of function words, one character a word, spaces between runs.

    A word that goes on with anything but a letter ends a run ("de um," has one); the first word of a text has no space
    before it and starts none.
    """
    head = re.compile(r"\w+")

    @lru_cache(maxsize=200_000)
    def code(word: str) -> str:
        if word in codes:
            return codes[word]
        start = head.match(word)
        return codes.get(start.group(), "") + " " if start else " "

    for text in texts:
        coded = "".join(map(code, text.split(" ")[1:]))
        yield " ".join(run for run in coded.split() if len(run) > 1)


def superword_parts(vocabulary: list[str]) -> list[str]:
    """Return the words (with their mark) that the superwords of a vocabulary are made of, sorted."""
    superwords = (piece for piece in vocabulary[NUM_RESERVED_TOKENS:] if SPACE_MARK in piece[1:])
    return sorted({SPACE_MARK + word for piece in superwords for word in piece.split(SPACE_MARK)[1:]})
