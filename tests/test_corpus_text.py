"""Text out of HTML pages and its normal form: encodings, broken mark-up, struck-out law, mojibake."""

import sys
import time

import pytest

from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.cleaning.language import NormaliseConfig, ensure_normaliser, normalise
from teenytinyllama.cleaning.page_text import HtmlConfig, decode_page, ensure_html_reader, text_of_html

pytest.importorskip("resiliparse")
pytest.importorskip("ftfy")

SENTENCE = "A revogação não alcança os direitos já adquiridos pelos servidores."
LAW = f"""<html><head><title>L1</title><meta http-equiv="Content-Type" content="text/html; charset={{charset}}"></head><body>
<table><tr><td><p align="center"><strong>Presidência<br>da República</strong></td></tr></table>
<p>Art. 1<sup>o</sup> {SENTENCE}</p>
<p>Art. 2<s>º</s>&nbsp; Ficam isentas as doações às irmãs, e o preço é de 10 €.</p></body></html>"""


def text_of(page: str | bytes, **keys: object) -> str:
    return text_of_html(page, HtmlConfig(**keys))[0]  # type: ignore[arg-type]


# Bytes of a page


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "iso-8859-15", "utf-8-sig", "mac-roman"])
def test_a_page_is_read_in_the_encoding_that_it_declares(encoding: str) -> None:
    page = LAW.format(charset=encoding.removesuffix("-sig").replace("mac-roman", "macintosh"))
    text, counts = text_of_html(page.encode(encoding), HtmlConfig())
    assert SENTENCE in text
    assert "irmãs, e o preço é de 10 €." in text
    assert [name for name in counts if name.startswith("pages_in_")]


@pytest.mark.parametrize(
    ("encoding", "charset"),
    [("utf-8", "iso-8859-1"), ("utf-8", "windows-1252"), ("cp1252", "utf-8"), ("cp1252", "iso-8859-1"),
     ("cp1252", "no-such-charset"), ("utf-16", "utf-8"), ("utf-8-sig", "windows-1252")],
)  # fmt: skip
def test_a_wrong_declaration_does_no_harm(encoding: str, charset: str) -> None:
    text, _ = text_of_html(LAW.format(charset=charset).encode(encoding), HtmlConfig())
    assert f"Art. 1º {SENTENCE}" in text
    assert "irmãs, e o preço é de 10 €." in text


def test_a_page_that_declares_nothing_is_recognised() -> None:
    assert decode_page(SENTENCE.encode("cp1252")) == (SENTENCE, "cp1252")
    assert decode_page(SENTENCE.encode()) == (SENTENCE, "utf-8")


def test_the_server_names_the_encoding_before_the_page_does() -> None:
    data = LAW.format(charset="windows-1252").encode("mac-roman")
    assert SENTENCE in decode_page(data, declared="macintosh")[0]


def test_a_few_damaged_bytes_leave_a_page_in_utf8() -> None:
    data = (SENTENCE * 20).encode() + b"\xe7 fim"
    text, encoding = decode_page(data)
    assert encoding == "utf-8"
    assert text == SENTENCE * 20 + "\ufffd fim"


# Mark-up


BROKEN = {
    "nothing closed": f"<p>Um <b>dois <i>três</b> quatro<td>{SENTENCE}<!-- sem fim",
    "closed twice": f"</p></div></table><p>{SENTENCE}</p></p></body></body></html></html>",
    "attributes without end": f'<p align="center" style="x<p>nada</p>"> antes <font face=Arial size=>{SENTENCE}</font>',
    "table without rows": f"<table><p>{SENTENCE}<tr><td>fim",
    "zero bytes": f"\0<p>\0{SENTENCE}\0</p>",
    "half of a pair": f"<p>{SENTENCE}\ud83d</p>",
    "unknown references": f"<p>&nada; &#xD800; &#99999999; {SENTENCE} &copy</p>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_mark_up_keeps_its_text(name: str) -> None:
    assert SENTENCE in text_of(BROKEN[name])


@pytest.mark.parametrize("page", ["", "<", "<html></html>", b"", "<frameset><frame src='a.htm'></frameset>"])
def test_a_page_without_text_is_empty(page: str | bytes) -> None:
    assert text_of(page) in ("", "<")


def test_paragraphs_stand_apart_and_lines_are_whole() -> None:
    text = text_of("<p>Um\n   artigo\nlongo.</p><p>&nbsp;&nbsp;&nbsp; Outro&nbsp;&nbsp;artigo.<br>Linha.</p>")
    assert text == "Um artigo longo.\n\nOutro artigo.\nLinha."


def test_the_main_content_leaves_out_menus_and_cookies() -> None:
    article = "".join(f"<p>{SENTENCE} Parágrafo número {number} do artigo.</p>" for number in range(8))
    page = (
        "<html><body><nav><ul><li><a href='/'>Início</a><li><a href='/c'>Contato</a></ul></nav>"
        "<div id='cookie-banner'>Usamos cookies para melhorar a sua visita. <button>Aceitar</button></div>"
        f"<main><article><h1>Título</h1>{article}</article></main>"
        "<footer>Todos os direitos reservados. <script>var a = '<p>código</p>';</script></footer></body></html>"
    )
    text = text_of(page)
    assert text.count(SENTENCE) == 8
    assert "Título" in text
    for other in ("Contato", "cookies", "reservados", "código"):
        assert other not in text
    assert "Contato" in text_of(page, main_content=False)


def test_deeply_nested_pages_take_no_time() -> None:
    start = time.perf_counter()
    assert text_of("<div>" * 50_000 + SENTENCE + "</div>" * 50_000) == SENTENCE
    assert time.perf_counter() - start < 5  # without a limit on the depth: a minute


# Struck-out text


MIXED = "<p>Art. 1º Texto em vigor, que é mais longo.</p><p><strike>Art. 2º Velho.</strike></p><p>Art. 2º Novo.</p>"


@pytest.mark.parametrize(
    "struck",
    ["<strike>Art. 2º Velho.</strike>", "<s>Art. 2º Velho.</s>", "<DEL>Art. 2º Velho.</DEL>",
     '<span style="color:red; text-decoration:line-through">Art. 2º Velho.</span>'],
)  # fmt: skip
def test_repealed_text_beside_text_in_force_is_removed(struck: str) -> None:
    page = MIXED.replace("<strike>Art. 2º Velho.</strike>", struck)
    text, counts = text_of_html(page, HtmlConfig())
    assert "Velho" not in text
    assert "Novo" in text
    assert counts["struck_characters_removed"] >= len("Art. 2º Velho.")
    assert "Velho" in text_of(page, struck_text="keep")


def test_a_norm_that_is_struck_out_whole_stays() -> None:
    page = f"<p>DECRETO Nº 1</p><strike><p>{SENTENCE}</p><p>{SENTENCE}</p></strike>"
    text, counts = text_of_html(page, HtmlConfig())
    assert text.count(SENTENCE) == 2
    assert counts == {"pages_wholly_struck": 1, "struck_characters_kept": len(text) - len("DECRETO Nº 1")}
    assert text_of(page, struck_text="remove") == "DECRETO Nº 1"


def test_ordinal_signs_survive() -> None:
    page = (
        "<p>DECRETO N<sup>o</sup> 5, art. 1<sup><u>o</u></sup>, §<b> 3</b><u><SUP>\n<font size='2'>o</font></SUP></u>, "
        "2<sup>a</sup> via, 195<s>º</s> ano, 10 m<sup>2</sup>, x<sup>ao</sup></p>"
    )
    assert text_of(page, struck_text="remove") == "DECRETO Nº 5, art. 1º, § 3º, 2ª via, 195º ano, 10 m2, xao"


def test_empty_cells_leave_no_tabs() -> None:
    page = "<table><tr><td></td><td><p>Ementa da lei.</p></td></tr><tr><td>um</td><td>dois</td></tr></table>"
    assert text_of(page) == "Ementa da lei.\n\num\t\tdois"


def test_an_unknown_choice_for_struck_text_is_refused() -> None:
    with pytest.raises(InputError, match="struck_text=perhaps: must be one of keep, remove, remove_in_part"):
        HtmlConfig(struck_text="perhaps")  # type: ignore[arg-type]


# Normal form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("InformaÃ§Ã£o sobre Ã³leo", "Informação sobre óleo"),
        ("Ã‰ AÃ‡ÃO", "É AÇÃO"),
        ("Lei nÂº 5, feita â€œà moda\u00e2\u20ac\u009d", "Lei nº 5, feita “à moda”"),
        ("Voc\u00ea \x96 sim", "Você – sim"),
        ("\x93Dever\u00e1\x94 \u00e9 usado\x85", "“Deverá” é usado…"),
        ("cafe\u0301 e na\u0303o", "café e não"),
        ("um\r\ndois\rtrês\u2028quatro\x0bcinco", "um\ndois\ntrês\nquatro\ncinco"),
        ("dez\u00a0mil\u202freais", "dez mil reais"),
        ("pala\u00advra\u200b \ufeffcom\x00 lixo\ue000\ud83d", "palavra com lixo"),
        ("o\ufb01cial", "oficial"),
        ("\n\n um  \n \n\n\n\tdois\t\n", " um\n\n\tdois"),
    ],
)
def test_normal_form(text: str, expected: str) -> None:
    found, _ = normalise(text, NormaliseConfig())
    assert found == expected
    assert normalise(found, NormaliseConfig()) == (expected, {})


@pytest.mark.parametrize(
    "text", ["A SUA IRMÃ” disse", "IRMÃ… e AVÔ”", "«A MANH\u00c3\u00bb", "👩\u200d🚀 e Ã, MANHÃ: ÂNGULO", "10 m² a 5º"]
)
def test_good_portuguese_stays(text: str) -> None:
    assert normalise(text, NormaliseConfig()) == (text, {})


def test_what_was_changed_is_counted() -> None:
    _, counts = normalise("nÃ£o\nsim\nirmÃ£\x00\u200b", NormaliseConfig())
    assert counts == {"mojibake_lines_repaired": 2, "control_characters_removed": 2}


def test_each_repair_can_be_left_out() -> None:
    off = NormaliseConfig(
        compose=False, repair_mojibake=False, remove_control_characters=False, collapse_blank_lines=False
    )
    assert normalise("nÃ£o cafe\u0301\u200b \n\n\n", off) == ("nÃ£o cafe\u0301\u200b \n\n\n", {})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"resiliparse: not installed.*teenytinyllama\[corpus\]"):
        ensure_html_reader()
    with pytest.raises(MissingPackageError, match=r"ftfy: not installed.*teenytinyllama\[corpus\]"):
        ensure_normaliser(NormaliseConfig())
    ensure_normaliser(NormaliseConfig(repair_mojibake=False))


def test_importing_the_rooms_loads_no_library() -> None:
    import subprocess

    code = (
        "import sys, teenytinyllama.cleaning.page_text, teenytinyllama.cleaning.language; "
        "assert not {'resiliparse', 'ftfy', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
