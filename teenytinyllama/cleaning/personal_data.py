"""Personal data of fixed form: found by shape, check digits and context, masked with a placeholder, and counted.

| kind | what is found | what is asked of it |
|---|---|---|
| `email` | an address with a domain | not at a domain kept for examples (RFC 2606) |
| `phone` | Brazilian numbers with area code, +55 and +351 numbers, numbers behind `tel.`, `fax` and their like | a valid area code; 0800 and the like stay |
| `cpf` | 123.456.789-09, or 11 digits behind `CPF` | both check digits |
| `cnpj` | 12.345.678/0001-95, with letters too (12.ABC.345/01DE-35, issued since July 2026), or 14 characters behind `CNPJ` or its forerunner `CGC` | both check digits |
| `nif` | nine digits behind `NIF`, `NIPC` or `contribuinte` (Portugal) | first digit and check digit |
| `cep` | 01310-100 (Brazil), or eight digits behind `CEP` | no part of a longer number |
| `ip` | IPv4 and IPv6 | an address of the public internet that is no section number such as 4.1.2.3 |

What stays: names, offices and signatures. Laws, gazettes and minutes of parliament name officials in public acts, and
these acts are worth little without them; Brazil's law on data protection (13.709/2018, article 7, paragraphs 3 and 4)
lets public data be used for their purpose. A company's CNPJ is masked although a company is no person, for it may
belong to a sole trader; set `cnpj: null` for a source of public contracts.

What this cannot do: it finds no names, no streets and house numbers, dates of birth, identity cards (RG, cartão de
cidadão), PIS, voters' numbers, bank accounts, number plates or cases at court; no number that is spelt out, broken over
lines or misread in scanning; no number with wrong check digits, although a misprint can still be somebody's. It lowers
the amount of personal data in a corpus and does not make the corpus anonymous.
"""  # noqa: E501

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from ..checks import ensure

_DIGITS_CUT = str.maketrans("", "", ".-/ \u00a0")
# Area codes in use (Anatel's plan of national codes, Resolução 263/2001).
_AREA_CODES = frozenset(
    f"{first}{second}" for first, seconds in (
        (1, "123456789"), (2, "12478"), (3, "1234578"), (4, "123456789"), (5, "1345"), (6, "123456789"), (7, "134579"),
        (8, "123456789"), (9, "123456789"),
    ) for second in seconds
)  # fmt: skip


def _kind(placeholder: str, what: str) -> str | None:
    return field(default=placeholder, metadata={"help": f"what stands for {what}; null: they stay"})


@dataclass
class PersonalDataConfig:
    """Placeholder of each kind of personal data; null leaves a kind alone."""

    email: str | None = _kind("[EMAIL]", "e-mail addresses")
    cnpj: str | None = _kind("[CNPJ]", "Brazilian company numbers")
    cpf: str | None = _kind("[CPF]", "Brazilian taxpayer numbers")
    nif: str | None = _kind("[NIF]", "Portuguese taxpayer numbers")
    phone: str | None = _kind("[TELEFONE]", "telephone numbers")
    cep: str | None = _kind("[CEP]", "Brazilian postal codes")
    ip: str | None = _kind("[IP]", "addresses of the public internet")

    def __post_init__(self) -> None:
        """Refuse placeholders that would be taken for personal data.

        Raises:
            InputError: a placeholder with a digit or the sign @, or one that breaks a line.
        """
        for kind in fields(self):
            placeholder = getattr(self, kind.name)
            fits = placeholder is None or not re.search(r"[\d@\n\r]", placeholder)
            ensure(
                fits,
                f"{kind.name}={placeholder!r}: a placeholder holds no digit, no @ and no line end, or it could pass "
                f"for personal data. [{kind.name.upper()}] is usual.",
            )


def _check_digit(values: list[int], weights: list[int]) -> int:
    """Return the check digit modulo 11 of CPF, CNPJ and NIF: 11 less the rest, and 0 instead of 10 and 11."""
    rest = sum(value * weight for value, weight in zip(values, weights, strict=True)) % 11
    return 0 if rest < 2 else 11 - rest


def is_cpf(text: str) -> bool:
    """Return whether a text is a CPF: eleven digits, the last two of them check digits (Receita Federal).

    Args:
        text: with or without full stops and hyphen. Eleven equal digits pass the sums and are refused.
    """
    digits = text.translate(_DIGITS_CUT)
    if len(digits) != 11 or not (digits.isascii() and digits.isdecimal()) or digits == digits[0] * 11:
        return False
    values = [int(digit) for digit in digits]
    first = _check_digit(values[:9], list(range(10, 1, -1)))
    return values[9] == first and values[10] == _check_digit(values[:10], list(range(11, 1, -1)))


def is_cnpj(text: str) -> bool:
    """Return whether a text is a CNPJ: twelve digits or capital letters and two check digits.

    A letter counts as its ASCII code less 48 (Receita Federal, Instrução Normativa RFB 2.229/2024: letters are issued
    from July 2026 on, the numbers issued before stay valid).

    Args:
        text: with or without full stops, slash and hyphen. Fourteen equal digits pass the sums and are refused.
    """
    signs = text.translate(_DIGITS_CUT)
    if not re.fullmatch(r"[0-9A-Z]{12}[0-9]{2}", signs) or signs == signs[0] * 14:
        return False
    values = [ord(sign) - 48 for sign in signs]
    weights = [5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2]
    first = _check_digit(values[:12], weights)
    return values[12] == first and values[13] == _check_digit(values[:13], [6, *weights])


def is_nif(text: str) -> bool:
    """Return whether a text is a Portuguese NIF: nine digits, the last a check digit (Decreto-Lei 14/2013).

    Args:
        text: with or without spaces. 4 begins only 45, and 0 no number.
    """
    digits = text.translate(_DIGITS_CUT)
    if len(digits) != 9 or not (digits.isascii() and digits.isdecimal()):
        return False
    if digits[0] in "04" and digits[:2] != "45":
        return False
    values = [int(digit) for digit in digits]
    return values[8] == _check_digit(values[:8], list(range(9, 1, -1)))


_AT_LEFT = re.compile(r"[A-Za-z0-9À-ÿ_](?:[A-Za-z0-9À-ÿ_.+%'-]*[A-Za-z0-9À-ÿ_+-])?\Z")
_AT_RIGHT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)+")
_TOP_LEVEL = re.compile(r"\.(?:[a-z]{2,}|[A-Z]{2,}|xn--[a-z0-9-]+)\Z")  # `x@odata.deltaLink` is code
_EXAMPLE_DOMAINS = re.compile(r"(?i)(?:.*\.)?(?:example\.(?:com|net|org)|(?:test|example|invalid|localhost))")
_LONGEST_LOCAL_PART = 64  # RFC 5321


def _emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        left = _AT_LEFT.search(text[max(0, at - _LONGEST_LOCAL_PART) : at])
        right = _AT_RIGHT.match(text, at + 1, at + 255)
        if left and right and _TOP_LEVEL.search(right[0]) and not _EXAMPLE_DOMAINS.fullmatch(right[0]):
            yield at - len(left[0]), right.end()
        at = text.find("@", at + 1)


def _anchored(
    anchor: str, before: str, is_valid: Callable[[str], bool], stop_before: str = r"[\w.,/-]"
) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Return a finder of numbers that begin with what `before` matches and go on with `anchor`.

    The anchor begins with a character that texts seldom hold, so that a long text is read in one fast scan.
    """
    tail, head, stop = re.compile(anchor), re.compile(rf"(?:{before})\Z"), re.compile(stop_before)

    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in tail.finditer(text):
            begin = head.search(text[max(0, match.start() - 12) : match.start()])
            if not begin:
                continue
            start = match.start() - len(begin[0])
            if (start == 0 or not stop.match(text[start - 1])) and is_valid(text[start : match.end()]):
                yield start, match.end()

    return find


def _behind(words: str, number: str, is_valid: Callable[[str], bool]) -> Callable[[str], Iterator[tuple[int, int]]]:
    """Return a finder of numbers behind one of the words, with at most 25 characters of no digit between them."""
    pattern = re.compile(rf"(?:{words})[^\d\n]{{0,25}}?(?<![\w.,/-])({number})(?![\w/-]|[.,]\d)")

    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in pattern.finditer(text):
            if is_valid(match[1]):
                yield match.span(1)

    return find


def _always(_: str) -> bool:
    return True


_BRAZILIAN = r"(?:9[ .]?\d{4}|[2-9]\d{3})[-. ]?\d{4}"
_NUMBER_END = r"(?!\d|-\d)"
_WITH_AREA_CODE = re.compile(rf"\((?:0(?:xx|XX|\*\*)?)?(\d\d)\) ?{_BRAZILIAN}{_NUMBER_END}")
_WITH_COUNTRY_CODE = re.compile(
    rf"\+(?:55[ .-]?\(?(?:0?\d\d)\)?[ .-]?{_BRAZILIAN}|351[ .-]?[29]\d\d?(?:[ .-]?\d){{6,7}}){_NUMBER_END}"
)
_PHONE_WORDS = re.compile(
    r"(?:telefones?|Telefones?|TELEFONES?|telef|Telef|tel|Tel|TEL|fones?|Fones?|FONES?|celular|Celular|telemóve(?:l|is)"
    r"|Telemóve(?:l|is)|WhatsApp|Whatsapp|whatsapp|fax|Fax|FAX)\b[.:]?"
)
_PHONE = re.compile(
    rf"(?:\(?0?\d\d\)?[ .-]{{0,2}})?{_BRAZILIAN}{_NUMBER_END}|[29]\d\d?(?:[ .-]?\d){{6,7}}{_NUMBER_END}"
)
_FIRST_GAP = re.compile(r"[^\w\n(+]{0,6}(?:n\.?[º°o]s?)?[^\w\n(+]{0,4}")
_NEXT_GAP = re.compile(r"\s?(?:/|,|;|e|ou)\s?")


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in _WITH_AREA_CODE.finditer(text):
        if match[1] in _AREA_CODES:
            yield match.span()
    for match in _WITH_COUNTRY_CODE.finditer(text):
        yield match.span()
    for word in _PHONE_WORDS.finditer(text):
        gap = _FIRST_GAP.match(text, word.end())
        while gap:
            number = _PHONE.match(text, gap.end())
            if not number:
                break
            yield number.span()
            gap = _NEXT_GAP.match(text, number.end())


def _is_public_ip(text: str) -> bool:
    """Return whether a text is an address of the public internet.

    Four small numbers are taken for a section's (12.4.1.3), four of which the last three have three digits for an
    amount (5.142.163.152).
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    sizes = [len(part) for part in text.split(".")]
    is_amount_or_section = sizes[1:] == [3, 3, 3] or max(sizes) < 3
    return address.is_global and (address.version == 6 or not is_amount_or_section)


_IPV4 = _anchored(r"\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)", r"(?<!\d)\d{1,3}", _is_public_ip)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){3,7}:?[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})*(?![\w:])")


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    yield from _IPV4(text)
    if "::" in text or text.count(":") > 3:
        yield from (match.span() for match in _IPV6.finditer(text) if _is_public_ip(match[0]))


def _joined(*finders: Callable[[str], Iterator[tuple[int, int]]]) -> Callable[[str], Iterator[tuple[int, int]]]:
    def find(text: str) -> Iterator[tuple[int, int]]:
        for finder in finders:
            yield from finder(text)

    return find


_AFTER = r"(?![\w/-]|[.,]\d)"
# In order of preference: where two finds overlap, the first kind has it.
_FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "email": _emails,
    "cnpj": _joined(
        _anchored(rf"/[0-9A-Z]{{4}}-\d\d{_AFTER}", r"[0-9A-Z]{2}\.?[0-9A-Z]{3}\.?[0-9A-Z]{3}", is_cnpj),
        _behind(r"CNPJ|C\.N\.P\.J|CGC|C\.G\.C|Cnpj|cnpj", r"[0-9A-Z]{12}\d\d", is_cnpj),
    ),
    "cpf": _joined(
        _anchored(rf"\.\d{{3}}\.\d{{3}}[-/]\d\d{_AFTER}", r"(?<!\d)\d{3}", is_cpf),
        _behind(r"CPF|C\.P\.F|CIC|Cpf|cpf", r"\d{9}-?\d\d", is_cpf),
    ),
    "nif": _behind(
        r"NIF|N\.I\.F|NIPC|contribuinte|Contribuinte|CONTRIBUINTE|nif|Nif", r"\d{3}[ .]?\d{3}[ .]?\d{3}", is_nif
    ),
    "phone": _phones,
    "cep": _joined(
        _anchored(rf"-\d{{3}}{_AFTER}", r"(?<!\d)(?:\d{5}|\d{2}\.\d{3})", _always),
        _behind(r"CEP|C\.E\.P|Cep", r"\d{8}", _always),
    ),
    "ip": _addresses,
}


def mask_personal_data(text: str, config: PersonalDataConfig | None = None) -> tuple[str, dict[str, int]]:
    """Return a text with its personal data masked, and how many were masked by kind.

    Masking a masked text changes nothing.

    Args:
        text: of one document.
        config: the placeholder of each kind.
    """
    config = config or PersonalDataConfig()
    taken = find_personal_data(text, config)
    if not taken:
        return text, {}
    parts, place = [], 0
    counts: dict[str, int] = {}
    for start, end, kind in taken:
        parts += [text[place:start], getattr(config, kind)]
        place = end
        counts[kind] = counts.get(kind, 0) + 1
    return "".join([*parts, text[place:]]), counts


def find_personal_data(text: str, config: PersonalDataConfig) -> list[tuple[int, int, str]]:
    """Return start, end and kind of the personal data in a text that the config masks, in order, without overlaps."""
    rank = {kind: place for place, kind in enumerate(_FINDERS)}
    found = [(start, end, kind) for kind, find in _FINDERS.items() if getattr(config, kind) is not None
             for start, end in find(text)]  # fmt: skip
    taken: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(found, key=lambda item: (item[0], rank[item[2]])):
        if taken and start < taken[-1][1]:
            if rank[kind] < rank[taken[-1][2]]:
                taken[-1] = (start, end, kind)
            continue
        taken.append((start, end, kind))
    return taken
