"""Whom the texts of a corpus name, and how: counts with examples, and not a verdict.

Women and men in professions are told by the form of the word (`médica`, `médico`) or, where there is one form for both
(`dentista`), by the article, pronoun or title before it. A word that is an adjective or a verb too (`assistência
médica`, `ele ministra aulas`) counts only behind an article, a possessive, a preposition, a number, a form of `ser` or
a title; behind a noun it does not. So these are counted too seldom rather than too often: `o jovem médico` is left out.
"""

from collections.abc import Iterator, Sequence


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Twenty professions: ten with a form for each, ten with one form. Chosen for being frequent in Brazil and Portugal and
# for spanning care, law, crafts and power; the list is this project's own.
PROFESSIONS: dict[str, tuple[str, str]] = {
    "médico": ("médico médicos", "médica médicas"),
    "professor": ("professor professores", "professora professoras"),
    "enfermeiro": ("enfermeiro enfermeiros", "enfermeira enfermeiras"),
    "advogado": ("advogado advogados", "advogada advogadas"),
    "deputado": ("deputado deputados", "deputada deputadas"),
    "ministro": ("ministro ministros", "ministra ministras"),
    "engenheiro": ("engenheiro engenheiros", "engenheira engenheiras"),
    "cozinheiro": ("cozinheiro cozinheiros", "cozinheira cozinheiras"),
    "costureiro": ("costureiro costureiros", "costureira costureiras"),
    "escritor": ("escritor escritores", "escritora escritoras"),
}
SAME_FORM = tuple(
    sorted(_set("juiz presidente dentista motorista jornalista artista policial cientista estudante gerente"))
)
_FEMININE_FORM = {"juiz": "juíza"}
# Adjectives (`relatório policial`) and verbs (`ministra`, from `ministrar`) that are spelt like the profession.
AMBIGUOUS = _set("médico médicos médica médicas policial policiais ministra ministras")
_HE = _set(
    "o um ele este esse aquele os uns eles estes esses aqueles do dos no nos ao aos pelo pelos dum num neste nesse "
    "deste desse seu seus meu nosso nossos teu sr srs senhor senhores dr doutor doutores excelentíssimo"
)
_SHE = _set(
    "a uma ela esta essa aquela as umas elas estas essas aquelas da das na nas à às pela pelas duma numa nesta nessa "
    "desta dessa sua suas minha nossa nossas tua sra sras senhora senhoras dra doutora doutoras excelentíssima ª"
)
# What may stand before a noun besides.
_BEFORE_NOUNS = _set(
    "de por com para como sem entre cada todo toda todos todas algum alguma alguns algumas nenhum nenhuma outro outra "
    "outros outras dois duas três quatro cinco dez vários várias muitos muitas é era foi ser sou são eram foram seja "
    "fosse primeira primeiro ex"
)
_PRONOUNS = _set("ele ela eles elas")  # what stands behind them is a verb
_WOULD_BE_NOUN = (_HE | _SHE | _BEFORE_NOUNS) - _PRONOUNS

# Peoples and religions by the words that name them; without `ateia`, a form of `atear` too, and `argentina`, the state.
PEOPLES: dict[str, str] = {
    "brasileiros": "brasileiro brasileira brasileiros brasileiras",
    "portugueses": "português portuguesa portugueses portuguesas portuguez portugueza portuguezes portuguezas",
    "angolanos": "angolano angolana angolanos angolanas",
    "argentinos": "argentino argentinos argentinas",
    "americanos": "americano americana americanos americanas norte-americano norte-americana norte-americanos "
    "norte-americanas",
    "africanos": "africano africana africanos africanas",
    "indígenas": "indígena indígenas indigena indigenas índio índia índios índias",
    "ciganos": "cigano cigana ciganos ciganas",
    "chineses": "chinês chinesa chineses chinesas",
}
RELIGIONS: dict[str, str] = {
    "católicos": "católico católica católicos católicas",
    "evangélicos": "evangélico evangélica evangélicos evangélicas protestante protestantes",
    "judeus": "judeu judia judeus judias",
    "muçulmanos": "muçulmano muçulmana muçulmanos muçulmanas islâmico islâmica islâmicos islâmicas",
    "espíritas": "espírita espíritas",
    "candomblé e umbanda": "candomblé umbanda",
    "ateus": "ateu ateus",
}
_GROUP_OF = {word: group for group, words in (PEOPLES | RELIGIONS).items() for word in words.split()}
# Languages and states are no people: `língua portuguesa`, `em português`, `República Portuguesa`.
_NOT_PEOPLE = _set("língua línguas idioma idiomas em república")


def _forms() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for name, (masculine, feminine) in PROFESSIONS.items():
        found |= dict.fromkeys(masculine.split(), (name, "men")) | dict.fromkeys(feminine.split(), (name, "women"))
    for name in SAME_FORM:
        plural = f"{name}es" if name.endswith("z") else "policiais" if name == "policial" else f"{name}s"
        found |= {name: (name, ""), plural: (name, "")}
        if name in _FEMININE_FORM:
            found |= {name: (name, "men"), plural: (name, "men"), _FEMININE_FORM[name]: (name, "women"),
                      f"{_FEMININE_FORM[name]}s": (name, "women")}  # fmt: skip
    return found


_FORMS = _forms()


def find_professions(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the place, the profession and `men`, `women` or `not said` of each mention.

    Args:
        words: of a text in lower case, in order.
    """
    for place, word in enumerate(words):
        if word not in _FORMS:
            continue
        before = words[place - 1] if place else ""
        if word in AMBIGUOUS and before not in _WOULD_BE_NOUN:
            continue
        name, who = _FORMS[word]
        yield place, name, who or ("men" if before in _HE else "women" if before in _SHE else "not said")


def find_groups(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the place and the group of each mention.

    Args:
        words: of a text in lower case, in order; a word with hyphens is one, so `latino-americana` names nobody.
    """
    for place, word in enumerate(words):
        if word in _GROUP_OF and not (place and words[place - 1] in _NOT_PEOPLE):
            yield place, _GROUP_OF[word]
