"""Text of a page: the text of HTML with its paragraphs, and the lines of it that are no part of the document.

    decode_page(data)             bytes of a page -> its characters, and the name of the encoding
    text_of_html(page, config)    bytes or characters of a page -> its text, and counts
    remove_boilerplate(text, config)   the text without menus, cookie notices, page headers, attendance lists

Resiliparse (Apache-2.0, a parser in C and Rust without Python dependencies of weight) reads the pages. On 300 pages of
Brazilian federal law it keeps all of the norm's text, as plain parsing does, with the paragraphs whole; trafilatura
keeps 97.8 % and is 20 times slower (`benchmarks/corpus_quality.py`).

Lines of boilerplate are removed and counted by kind; a document goes only if nothing is left of it. Each kind is a
narrow list of whole lines: a word such as `Contato` is a menu only among other words of menus, and a list of names is
removed only below its heading. What is left between the lines is not changed, but for rows of full stops: laws fill
lines with them where a norm stays as it was, and three say as much.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..checks import ensure, ensure_packages
from . import Drop

StruckText = Literal["keep", "remove", "remove_in_part"]

# A page of which more than this share of characters is struck out is repealed as a whole. Of the federal laws half
# have no struck text, a third have 0.7 or more of it, and 3 % lie between 0.2 and 0.7.
WHOLLY_STRUCK = 0.6

_STRUCK_SELECTORS = ["strike", "s", "del", '[style*="line-through"]']
_STRUCK_HINT = re.compile(r"<(?:strike|s|del)[\s>]|line-through", re.IGNORECASE)
# Old pages of the law write the sign of an ordinal number, º, as a struck sign or as a raised letter by itself.
_STRUCK_ORDINAL = re.compile(r"<(strike|s|del)>\s*([ºª°])\s*</\1>", re.IGNORECASE)
_TAGS = r"(?:\s|<[^>]{1,200}>){0,6}"
_RAISED_ORDINAL = re.compile(rf"<sup\b[^>]{{0,200}}>({_TAGS})([oa])({_TAGS})</sup>", re.IGNORECASE)
_HARD_SPACES = re.compile(r"(?m)^[ \t]*\xa0[ \t\xa0]*|[ \xa0]*\xa0[ \xa0]*$")
_INNER_HARD_SPACES = re.compile(r" *\xa0[ \xa0]*")

_EMPTY_CELLS = re.compile(r"(?m)^(?:\t+| (?=\S))|\t+$")  # of a table, and a space that a tag left

# The search for the main content takes time that grows with the square of the depth of nested <div>.
_DEEPEST_DIV = 500
_DIV = re.compile(r"<(/?)div\b", re.IGNORECASE)

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_DECLARED = re.compile(rb"""charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]+)""", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 1024  # where the HTML standard looks for it (13.2.3.2, "prescan a byte stream")
# A page is UTF-8 with slips when at most one character in so many beyond ASCII is damaged.
_DAMAGED_ONE_IN = 20


@dataclass
class HtmlConfig:
    """How text is taken out of HTML pages."""

    main_content: bool = field(
        default=True, metadata={"help": "leave out menus, headers, footers, cookie notices and comments of a page"}
    )
    struck_text: StruckText = field(
        default="remove_in_part",
        metadata={"help": "struck-out text, such as repealed law. remove_in_part: it is removed where it stands "
                          "beside the text in force, and kept where nearly the whole page is struck out"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the choice.

        Raises:
            InputError: struck_text is no choice.
        """
        choices = ("keep", "remove", "remove_in_part")
        ensure(self.struck_text in choices, f"struck_text={self.struck_text}: must be one of {', '.join(choices)}.")


def ensure_html_reader() -> None:
    """Check that the library which reads HTML is installed.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
    """
    ensure_packages("corpus", "resiliparse")


def decode_page(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Return the characters of a page and the encoding that they were read in.

    UTF-8 that decodes whole is UTF-8, whatever the page declares: text of another encoding hardly ever does. Otherwise
    the declared encoding counts, then what the bytes look like (uchardet). ISO-8859-1 is read as Windows-1252, as the
    Encoding Standard of the WHATWG wants. Nothing fails: bytes that mean nothing become U+FFFD.

    Args:
        data: bytes of the page.
        declared: encoding that the server's Content-Type named, if known.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace"), encoding
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    if _is_damaged_utf8(data):
        return data.decode("utf-8", errors="replace"), "utf-8"
    encoding = _name_of_encoding(data, declared)
    return data.decode(encoding, errors="replace"), encoding


def _is_damaged_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", errors="replace")
    beyond_ascii = sum(map(len, re.findall(r"[^\x00-\x7f]+", text)))
    return text.count("\ufffd") * _DAMAGED_ONE_IN <= beyond_ascii


def _name_of_encoding(data: bytes, declared: str | None) -> str:
    """Return the Python name of the encoding of bytes that are not UTF-8."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    found = _DECLARED.search(data[:_DECLARED_WITHIN_BYTES])
    labels = [declared, found.group(1).decode("ascii") if found else None]
    for label in labels:
        name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
        if name and name not in ("utf-8", "utf-16-le", "utf-16-be", "x-user-defined", "replacement"):
            return str(name)
    name = detect_encoding(data, from_html_meta=False)
    return "cp1252" if name in (None, "utf-8", "ascii") else str(name)


def text_of_html(page: str | bytes, config: HtmlConfig, declared: str | None = None) -> tuple[str, dict[str, int]]:
    """Return the text of an HTML page, a paragraph a block, and what was done.

    Broken mark-up is read as a browser reads it. Text of a page without any text is empty.

    Args:
        page: the page, as bytes or as characters.
        config: what is left out.
        declared: with bytes, the encoding that the server named.

    Returns:
        The text, and counts: `struck_characters_removed`, `struck_characters_kept`, `pages_wholly_struck`,
        `pages_in_<encoding>` for bytes. What did not occur is absent.
    """
    counts: dict[str, int] = {}
    if isinstance(page, bytes):
        page, encoding = decode_page(page, declared)
        counts[f"pages_in_{encoding}"] = 1
    page = _RAISED_ORDINAL.sub(_ordinal_sign, _STRUCK_ORDINAL.sub(r"\2", page))
    text = _plain_text(page, config.main_content)
    if _STRUCK_HINT.search(page):
        text = _decide_struck(page, text, config, counts)
    return text, counts


def _ordinal_sign(match: re.Match[str]) -> str:
    return match[1].lstrip() + ("º" if match[2] in "oO" else "ª") + match[3]


def _decide_struck(page: str, text: str, config: HtmlConfig, counts: dict[str, int]) -> str:
    """Return the text with or without what is struck out, and count its characters."""
    in_force = _plain_text(page, config.main_content, skip=_STRUCK_SELECTORS)
    num_struck = len(text) - len(in_force)
    if num_struck <= 0:
        return text
    is_whole = num_struck > WHOLLY_STRUCK * len(text)
    if is_whole:
        counts["pages_wholly_struck"] = 1
    if config.struck_text == "keep" or (config.struck_text == "remove_in_part" and is_whole):
        counts["struck_characters_kept"] = num_struck
        return text
    counts["struck_characters_removed"] = num_struck
    return in_force


def _plain_text(page: str, main_content: bool, skip: list[str] | None = None) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    if main_content and _div_depth(page) > _DEEPEST_DIV:
        main_content = False
    try:
        text: str = extract_plain_text(page, main_content=main_content, alt_texts=False, skip_elements=skip)
    except TypeError:  # half of a pair of UTF-16 codes, which UTF-8 cannot hold
        page = page.encode("utf-8", errors="replace").decode("utf-8")
        text = extract_plain_text(page, main_content=main_content, alt_texts=False, skip_elements=skip)
    if "\xa0" in text:  # browsers widen gaps and indent paragraphs with these
        text = _INNER_HARD_SPACES.sub(" ", _HARD_SPACES.sub("", text))
    return _EMPTY_CELLS.sub("", text).strip()


def _div_depth(page: str) -> int:
    """Return how deep <div> is nested; pages with few of them are not looked at."""
    if page.count("<div") + page.count("<DIV") <= _DEEPEST_DIV:
        return 0
    depth = deepest = 0
    for match in _DIV.finditer(page):
        depth = max(depth - 1, 0) if match.group(1) else depth + 1
        deepest = max(deepest, depth)
    return deepest


_MOST_LINE_CHARACTERS = 400  # a longer line is text
_FEWEST_MENU_WORDS = 3  # in a row
_FEWEST_NAMES = 3  # under the heading of an attendance list
_HEAD_CHARACTERS = 5000  # where a journal of parliament says that it is one


@dataclass
class BoilerplateConfig:
    """Which kinds of lines are removed."""

    menus: bool = field(default=True, metadata={"help": "rows of menu words, `Ir para o conteúdo`, `Voltar ao topo`"})
    cookies: bool = field(default=True, metadata={"help": "notices on cookies and privacy of a site"})
    page_links: bool = field(
        default=True, metadata={"help": "`Texto para impressão`, letterheads and link labels of pages of laws, errors"}
    )
    page_headers: bool = field(
        default=True, metadata={"help": "page numbers and page headers of printed journals, imprints, lines of tables"}
    )
    attendance_lists: bool = field(
        default=True, metadata={"help": "names of the members present and absent in journals of parliament"}
    )
    dot_leaders: bool = field(default=True, metadata={"help": "rows of six full stops or more become three"})
    c4_lines: bool = field(
        default=False, metadata={"help": "C4's rules for lines: only sentences of three words or more are kept"}
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip().casefold() for part in text.split("|"))


# Alone on a line these are links of a page, whatever stands beside them.
_ALWAYS_MENU = _words(
    "ir para o conteúdo|ir para o conteúdo principal|ir para o menu|ir para a busca|ir para o rodapé"
    "|pular para o conteúdo|saltar para o conteúdo|voltar ao topo|voltar para o topo|topo da página"
    "|mapa do site|mapa do sítio|mapa do portal|todos os direitos reservados|todos os direitos reservados."
    "|compartilhe no facebook|compartilhar no facebook|compartilhar no twitter|compartilhar no whatsapp"
    "|partilhar no facebook|curtir página|siga-nos nas redes sociais|assine nossa newsletter"
    "|receba nossa newsletter|subscreva a nossa newsletter|deixe um comentário|deixe o seu comentário"
    "|esqueceu sua senha?|esqueci minha senha|recuperar palavra-passe|alto contraste|abrir menu|fechar menu"
    "|ir para o topo"
)
# These are only where several stand together.
_MENU_WORDS = _ALWAYS_MENU | _words(
    "início|inicio|home|página inicial|notícias|contato|contacto|contactos|contatos|fale conosco|fale connosco"
    "|quem somos|sobre|sobre nós|serviços|produtos|loja|blog|buscar|busca|pesquisar|pesquisa|entrar|sair|login"
    "|cadastre-se|registe-se|criar conta|minha conta|carrinho|ajuda|perguntas frequentes|faq|imprimir|enviar"
    "|enviar por e-mail|compartilhar|compartilhe|partilhar|leia mais|leia também|ler mais|saiba mais|ver mais"
    "|ver todos|anterior|próximo|próxima|seguinte|voltar|menu|categorias|arquivo|arquivos|tags|comentários"
    "|facebook|twitter|instagram|youtube|linkedin|whatsapp|telegram|rss|política de privacidade|termos de uso"
    "|termos e condições|política de cookies|acessibilidade|ouvidoria|transparência|imprensa|galeria|vídeos"
    "|fotos|multimédia|multimídia|agenda|eventos|parceiros|links|links úteis|português|english|español"
    "|publicidade|anuncie|trabalhe conosco|fechar|abrir|próxima página|página anterior"
)
_SEPARATOR = re.compile(r"\s*[|•·»>]\s*")
_COOKIES = re.compile(
    r"(?i)(?=.*\bcookies?\b).*(?:\b(?:este|nosso|deste|neste|o) (?:site|sítio|website|portal)\b"
    r"|\bao (?:continuar|navegar)\b|\b(?:aceitar|aceito|aceite|rejeitar|recusar|gerir|gerenciar)\b.{0,20}\bcookies?\b"
    r"|\b(?:definições|política|preferências) de cookies\b"
    r"|\b(?:utilizamos|usamos)\b.{0,30}\bcookies?\b)"
)
_PAGE_LINKS = re.compile(
    r"(?i)texto para impress[ãa]o\.?|vers[ãa]o para impress[ãa]o|download para (?:o )?anexo|\[go back\]"
    r"|(?:vide )?texto (?:compilado|atualizado)|mensagem de veto|exposi[çc][ãa]o de motivos|vig[êe]ncia"
    r"|produ[çc][ãa]o de efeitos?|presid[êe]ncia da rep[úu]blica|casa civil|subchefia para assuntos jur[íi]dicos"
    r"|secretaria-geral|este texto n[ãa]o substitui o (?:publicado|original).*|acesso negado! essa transa[çc][ãa]o.*"
    r"|esse evento gerou o seguinte ticket.*|(?:documento )?assinado (?:eletronicamente|digitalmente)(?: por.*)?"
)
_WEEKDAY = r"(?:segunda|ter[çc]a|quarta|quinta|sexta)-feira|s[áa]bado|domingo"
_SERIES = r"[IVX1l]{1,4} ?s[ée]rie(?:-[A-C])? ?[-–—]* ?n[úu]mero ?\d+"
_PAGE_HEADERS = re.compile(
    rf"(?i)(?:\d{{1,5}}\s+)?(?:(?:{_WEEKDAY}), \d+[.º°]* de \w+ d[eo] \d{{4}}\s+)?{_SERIES}(?:\s+\d{{1,5}})?"
    rf"|(?:{_SERIES}\s+)?(?:{_WEEKDAY}), \d+[.º°]* de \w+ d[eo] \d{{4}}(?:\s+\d{{1,5}})?"
    r"|p[áa]g(?:ina|\.) ?\d+(?: ?(?:de|/) ?\d+)?|[-–—] ?\d{1,5} ?[-–—]|\|[|\s:+-]*"
    r"|di[áa]rio da assembleia da rep[úu]blica|dep[óo]sito legal n\.[º°o] ?\S+|pre[çc]o deste n[úu]mero.*"
    r"|imprensa nacional(?: ?[-–—]? ?casa [dp]a moeda)?(?:,? e\. ?p\.?)?"
    r"|a divis[ãa]o de reda[cç][cç]?[ãa]o.*|porte pago"
    r"|por ordem superior e para constar,.*|toda a correspond[êe]ncia, quer oficial.*"
    r"|\d+ ?[-–—] ?(?:pre[çc]o de p[áa]gina|para os novos assinantes|os prazos de reclama[çc][ãa]o) .*"
)
_JOURNAL = re.compile(rf"(?i)di[áa]rio da\s+assembleia|{_SERIES}|reuni[ãa]o plen[áa]ria")
_PAGE_NUMBER = re.compile(r"\d{1,5}|AVISO")  # in journals alone: elsewhere a number may be a cell of a table
# `Estavam presentes os seguintes Srs. Deputados:`, `Srs. Deputados que faltaram à sessão:` and their like.
_LIST_HEADING = re.compile(
    r"(?i)(?:(?:estavam|estiveram) presentes|faltaram|entraram|presentes|responderam).{0,60}\bdeputad.{0,60}"
    r"|(?:os )?(?:srs\.?|senhores) deputados (?:presentes|não presentes|ausentes|que (?:faltaram|entraram)).{0,120}"
)
_PARTY = re.compile(
    r"(?i)(?:partido|centro democr[áa]tico|bloco de esquerda|grupo parlamentar|movimento democr[áa]tico|uni[ãa]o"
    r"|ac[çc][ãa]o|associa[çc][ãa]o|alian[çc]a|agrupamento|reformadores|interven[çc][ãa]o democr|os verdes"
    r"|(?:deputad[oa]s? )?independentes?)\b.{0,80}"
)
_NAME_WORD = r"(?:[A-ZÀ-Ý][\w'’.-]*|d['’][A-ZÀ-Ý][\w-]*)"
_NAME = re.compile(rf"{_NAME_WORD}(?:[ \t]+(?:d[aeo]s?|e|y|del|la|van|von|{_NAME_WORD})){{1,12}}[.,;]?")
_END_PUNCTUATION = (".", "?", "!", '"', "'", "”", "»")
_DOT_LEADER = re.compile(r"\.{6,}|\.(?: \.){5,}")
_POLICIES = ("termos de uso", "política de privacidade", "política de cookies", "usa cookies", "uso de cookies")


def _is_name(line: str) -> bool:
    return len(line) <= 90 and not line.isupper() and _NAME.fullmatch(line) is not None


def _list_end(lines: list[str], start: int) -> int:
    """Return the line behind the attendance list whose heading is at `start`, or `start` if there is none.

    Blank lines, parties, page headers and one misread short line between names belong to the list.
    """
    names, end, place = 0, start + 1, start + 1
    misread = False
    while place < len(lines):
        line = lines[place].strip()
        if _is_name(line) or (line and _PARTY.fullmatch(line)):
            names += 1
            end, misread = place + 1, False
        elif line and not (_PAGE_HEADERS.fullmatch(line) or _PAGE_NUMBER.fullmatch(line)):
            if misread or len(line) > 70 or ": -" in line:
                break
            misread = True
        place += 1
    return end if names >= _FEWEST_NAMES else start


def _attendance(lines: list[str]) -> Iterator[int]:
    place = 0
    while place < len(lines):
        line = lines[place].strip()
        is_heading = 10 < len(line) < 200 and "eputad" in line and _LIST_HEADING.fullmatch(line)
        end = _list_end(lines, place) if is_heading else place
        yield from range(place, end)
        place = max(end, place + 1)


def _menus(lines: list[str]) -> Iterator[int]:
    row: list[int] = []
    for place, line in enumerate([*lines, "-"]):
        folded = line.strip().casefold()
        if not folded:
            continue
        parts = _SEPARATOR.split(folded) if len(folded) <= _MOST_LINE_CHARACTERS else [folded]
        if all(part in _MENU_WORDS or not part for part in parts):
            always = folded in _ALWAYS_MENU or sum(map(bool, parts)) >= _FEWEST_MENU_WORDS
            row.append(place)
            if always:
                yield place
            continue
        if len(row) >= _FEWEST_MENU_WORDS:
            yield from row
        row = []


def _matching(pattern: re.Pattern[str]) -> Callable[[list[str]], Iterator[int]]:
    def find(lines: list[str]) -> Iterator[int]:
        for place, line in enumerate(lines):
            if len(line) <= _MOST_LINE_CHARACTERS and pattern.fullmatch(line.strip()):
                yield place

    return find


def _cookies(lines: list[str]) -> Iterator[int]:
    for place, line in enumerate(lines):
        if len(line) <= _MOST_LINE_CHARACTERS and "ookie" in line and _COOKIES.match(line):
            yield place


def _page_headers(lines: list[str]) -> Iterator[int]:
    head, size = [], 0
    for line in lines:
        head.append(line)
        size += len(line)
        if size > _HEAD_CHARACTERS:
            break
    is_journal = _JOURNAL.search("\n".join(head)[:_HEAD_CHARACTERS])
    for place, line in enumerate(lines):
        stripped = line.strip()
        if not stripped or len(stripped) > _MOST_LINE_CHARACTERS:
            continue
        if _PAGE_HEADERS.fullmatch(stripped) or (is_journal and _PAGE_NUMBER.fullmatch(stripped)):
            yield place


def _c4_lines(lines: list[str]) -> Iterator[int]:
    """Yield what C4 removes (Raffel et al. 2020, section 2.2): no sentence, few words, policies, scripts."""
    for place, line in enumerate(lines):
        stripped = line.strip()
        words, lowered = stripped.split(), stripped.lower()
        is_sentence = stripped.endswith(_END_PUNCTUATION) and not stripped.endswith("...")
        is_notice = "javascript" in lowered or any(policy in lowered for policy in _POLICIES)
        if stripped and (len(words) < 3 or not is_sentence or is_notice or max(map(len, words)) > 1000):
            yield place


_KINDS: tuple[tuple[str, Callable[[list[str]], Iterator[int]]], ...] = (
    ("attendance_lists", _attendance),
    ("page_headers", _page_headers),
    ("page_links", _matching(_PAGE_LINKS)),
    ("cookies", _cookies),
    ("menus", _menus),
    ("c4_lines", _c4_lines),
)


def remove_boilerplate(text: str, config: BoilerplateConfig | None = None) -> tuple[str, dict[str, int]]:
    """Return a text without its boilerplate lines, and how many lines went by kind (of dot leaders: how many rows).

    Where lines went, three or more line feeds in a row become two; a text that holds no boilerplate is returned as it
    is, and one of boilerplate alone becomes empty.

    Args:
        text: of one document, a line a paragraph, item or heading.
        config: the kinds to remove.
    """
    lines, kinds, leaders = find_boilerplate(text, config or BoilerplateConfig())
    counts = Counter(kind for place, kind in kinds.items() if lines[place].strip())
    if leaders:
        counts["dot_leaders"] = leaders
    kept = "\n".join(line for place, line in enumerate(lines) if place not in kinds)
    return (re.sub(r"\n\s*\n\s*\n", "\n\n", kept).strip() if kinds else kept), dict(counts)


def find_boilerplate(text: str, config: BoilerplateConfig) -> tuple[list[str], dict[int, str], int]:
    """Return the lines of a text, the kind of each line that goes, and how many dot leaders were shortened in them.

    Args:
        text: of one document.
        config: the kinds to remove.
    """
    leaders = 0
    if config.dot_leaders and ("......" in text or ". . ." in text):
        text, leaders = _DOT_LEADER.subn("...", text)
    lines = text.split("\n")
    kinds: dict[int, str] = {}
    for kind, find in _KINDS:
        if getattr(config, kind):
            for place in find(lines):
                kinds.setdefault(place, kind)
    return lines, kinds, leaders


def drop_if_emptied(text: str, removed: dict[str, int]) -> Drop | None:
    """Drop a document of which nothing is left.

    Args:
        text: after `remove_boilerplate`.
        removed: its counts of lines.
    """
    return Drop("boilerplate", sum(removed.values()), 0) if removed and not text.strip() else None
