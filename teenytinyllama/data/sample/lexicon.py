"""Words of the embedded corpus: nouns with gender and plural, adjectives with four forms, determiners, names.

The generator of stories inflects with these tables and the agreement checker reads them backwards, so both follow the
same grammar. All lists are our own selection of common Brazilian Portuguese words.

A list entry is one word, or `singular/plural` (nouns) or `ms/fs/mp/fp` (adjectives) where the regular rules of
`pluralise` and `inflect_adjective` would be wrong. A hyphenated word counts as one word.
"""

from dataclasses import dataclass
from functools import cache

from .modifiers import ADJECTIVE_LISTS, ADJECTIVES_OF_CLASS, NAME_LISTS
from .words import NOUN_LISTS, UNIONS

FourForms = tuple[str, str, str, str]
FORM_KEYS = (("m", "s"), ("f", "s"), ("m", "p"), ("f", "p"))
"""Order of the four forms everywhere: masculine singular, feminine singular, masculine plural, feminine plural."""


@dataclass(frozen=True)
class Noun:
    """A noun with its gender ("m" or "f") and the semantic class it was listed under."""

    singular: str
    plural: str
    gender: str
    kind: str


@dataclass(frozen=True)
class Name:
    """A first name with its gender ("m" or "f")."""

    text: str
    gender: str


# Masculine singular (or plural) form used in templates -> four forms, and what stays of it before a first name.
_DETERMINER_TABLE: tuple[tuple[str, str], ...] = (
    ("o a os as", ""),
    ("um uma uns umas", ""),
    ("do da dos das", "de"),
    ("no na nos nas", "em"),
    ("ao à aos às", "a"),
    ("pelo pela pelos pelas", "por"),
    ("num numa nuns numas", "em"),
    ("seu sua seus suas", ""),
    ("meu minha meus minhas", ""),
    ("nosso nossa nossos nossas", ""),
    ("este esta estes estas", ""),
    ("esse essa esses essas", ""),
    ("aquele aquela aqueles aquelas", ""),
    ("neste nesta nestes nestas", "em"),
    ("nesse nessa nesses nessas", "em"),
    ("naquele naquela naqueles naquelas", "em"),
    ("deste desta destes destas", "de"),
    ("desse dessa desses dessas", "de"),
    ("daquele daquela daqueles daquelas", "de"),
    ("algum alguma alguns algumas", ""),
    ("nenhum nenhuma nenhuns nenhumas", ""),
    ("outro outra outros outras", ""),
    ("certo certa certos certas", ""),
    ("todo toda todos todas", ""),
    ("muito muita muitos muitas", ""),
    ("pouco pouca poucos poucas", ""),
    ("quanto quanta quantos quantas", ""),
    ("primeiro primeira primeiros primeiras", ""),
    ("último última últimos últimas", ""),
    ("mesmo mesma mesmos mesmas", ""),
    ("cada cada - -", ""),
    ("- - dois duas", ""),
    ("- - três três", ""),
    ("- - quatro quatro", ""),
    ("- - cinco cinco", ""),
    ("- - seis seis", ""),
    ("- - vários várias", ""),
)


def pluralise(singular: str) -> str:
    """Return the regular plural of a Portuguese noun or adjective.

    Words that end in `ão` take `ões`; other plurals of `ão`, and words in `s`, have to be listed explicitly.
    """
    if singular.endswith("ão"):
        return singular[:-2] + "ões"
    for ending, plural in (("al", "ais"), ("el", "éis"), ("ol", "óis"), ("ul", "uis"), ("il", "is"), ("m", "ns")):
        if singular.endswith(ending):
            return singular[: -len(ending)] + plural
    return singular + ("es" if singular[-1] in "rz" else "s")


def inflect_adjective(entry: str) -> FourForms:
    """Return (ms, fs, mp, fp) of an adjective entry.

    Example:
        >>> inflect_adjective("encantador")
        ('encantador', 'encantadora', 'encantadores', 'encantadoras')
    """
    if "/" in entry:
        masculine, feminine, plural_m, plural_f = entry.split("/")
        return masculine, feminine, plural_m, plural_f
    if entry.endswith("o"):
        return entry, entry[:-1] + "a", entry + "s", entry[:-1] + "as"
    if entry.endswith("or"):
        return entry, entry + "a", entry + "es", entry + "as"
    plural = entry[:-2] + "eis" if entry.endswith("vel") else pluralise(entry)
    return entry, entry, plural, plural


def _read_nouns(kind: str) -> tuple[Noun, ...]:
    nouns = []
    for gender, words in NOUN_LISTS[kind].items():
        for entry in words.split():
            singular, _, plural = entry.partition("/")
            nouns.append(Noun(singular, plural or pluralise(singular), gender, kind))
    return tuple(nouns)


NOUNS: dict[str, tuple[Noun, ...]] = {kind: _read_nouns(kind) for kind in NOUN_LISTS}
NOUNS |= {union: tuple(noun for kind in kinds.split() for noun in NOUNS[kind]) for union, kinds in UNIONS.items()}
ADJECTIVES: dict[str, tuple[FourForms, ...]] = {
    group: tuple(inflect_adjective(entry) for entry in words.split()) for group, words in ADJECTIVE_LISTS.items()
}
NAMES: tuple[Name, ...] = tuple(
    Name(text, gender) for gender, words in NAME_LISTS.items() for text in words.split()
)


def _read_determiners() -> dict[str, tuple[FourForms, str, str]]:
    table: dict[str, tuple[FourForms, str, str]] = {"*": (("", "", "", ""), "p", "")}
    for forms, before_name in _DETERMINER_TABLE:
        masculine, feminine, plural_m, plural_f = (form.strip("-") for form in forms.split())
        four = (masculine, feminine, plural_m, plural_f)
        table |= {four[index]: (four, number, before_name) for index, number in ((0, "s"), (2, "p")) if four[index]}
    return table


DETERMINERS: dict[str, tuple[FourForms, str, str]] = _read_determiners()
"""Template key -> (four forms, number of the key, what is left before a first name); `*` is a plural without one."""
for _forms, _before_name in _DETERMINER_TABLE:
    _four = tuple(_forms.split())
    for _index, _number in ((0, "s"), (2, "p")):
        if _four[_index] != "-":
            DETERMINERS[_four[_index]] = (_four, _number, _before_name)  # type: ignore[assignment]
DETERMINERS["*"] = (("", "", "", ""), "p", "")


@cache
def adjectives_for(kind: str) -> tuple[FourForms, ...]:
    """Return the adjectives that make sense with nouns of a class, in a fixed order."""
    return tuple(forms for group in ADJECTIVES_OF_CLASS[kind].split() for forms in ADJECTIVES[group])


Agreement = frozenset[tuple[str, str]]
"""The (gender, number) pairs a word form can stand for, for example {("m", "s")}."""


def _index_forms(four_forms: tuple[tuple[str, ...], ...]) -> dict[str, Agreement]:
    table: dict[str, set[tuple[str, str]]] = {}
    for forms in four_forms:
        for form, key in zip(forms, FORM_KEYS, strict=True):
            if form:
                table.setdefault(form, set()).add(key)
    return {form: frozenset(keys) for form, keys in table.items()}


@cache
def determiner_forms() -> dict[str, Agreement]:
    """Return every determiner, contraction, possessive and numeral with what it agrees with."""
    return _index_forms(tuple(entry[0] for entry in DETERMINERS.values()))


@cache
def adjective_forms() -> dict[str, Agreement]:
    """Return every adjective form with what it agrees with."""
    return _index_forms(tuple(forms for group in ADJECTIVES.values() for forms in group))


@cache
def noun_forms() -> dict[str, Agreement]:
    """Return every noun form with its gender and number (two entries where singular and plural are alike)."""
    table: dict[str, set[tuple[str, str]]] = {}
    for nouns in NOUNS.values():
        for noun in nouns:
            table.setdefault(noun.singular, set()).add((noun.gender, "s"))
            table.setdefault(noun.plural, set()).add((noun.gender, "p"))
    return {form: frozenset(keys) for form, keys in table.items()}


@cache
def name_genders() -> dict[str, str]:
    """Return every first name with its gender."""
    return {name.text: name.gender for name in NAMES}
