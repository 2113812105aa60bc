"""Boilerplate lines: which go, which stay, and what is counted."""

import pytest

from teenytinyllama.cleaning import Drop
from teenytinyllama.cleaning.page_text import BoilerplateConfig, drop_if_emptied, remove_boilerplate

LAW = """Presidência da República
Casa Civil
Subchefia para Assuntos Jurídicos
DECRETO Nº 1.133, DE 3 DE MAIO DE 1994.
Texto para impressão
Mensagem de veto
Altera o Decreto nº 92.512, de 2 de abril de 1986.
Art. 2° Este decreto entra em vigor na data de sua publicação.
JOSÉ SARNEY
Este texto não substitui o publicado no D.O.U. de 4.5.1994"""

JOURNAL = """I Série-Número 98		4011

Sábado, 5 de Junho de 1982

DIÁRIO da Assembleia da República

O Sr. Presidente: - Srs. Deputados, temos quórum, pelo que declaro aberta a sessão.

Estavam presentes os seguintes Srs. Deputados:

Partido Social-Democrata (PSD):

Adérito Manuel Soares Campos.
António d'Orey Capucho
4012
Maria da Conceição V. de Sousa.
mal 1ido pelo leitor
Álvaro Roque Bissaia Barreto.

Deputados independentes:

João Corregedor da Fonseca.

ANTES DA ORDEM DO DIA

O Sr. Secretário: - Foram recebidos 12 requerimentos.

4012

PREÇO DESTE NÚMERO 48$00
IMPRENSA NACIONAL-CASA DA MOEDA, E. P."""


def test_a_page_of_a_law_keeps_the_norm_alone() -> None:
    text, counts = remove_boilerplate(LAW)
    assert text.split("\n") == [LAW.split("\n")[place] for place in (3, 6, 7, 8)]
    assert counts == {"page_links": 6}


def test_a_journal_of_parliament_keeps_what_was_said() -> None:
    text, counts = remove_boilerplate(JOURNAL)
    assert text == (
        "O Sr. Presidente: - Srs. Deputados, temos quórum, pelo que declaro aberta a sessão.\n\n"
        "ANTES DA ORDEM DO DIA\n\nO Sr. Secretário: - Foram recebidos 12 requerimentos."
    )
    assert counts == {"attendance_lists": 10, "page_headers": 6}


@pytest.mark.parametrize(("text", "kept", "kind"), [
    ("Início\nNotícias\n\nContato\nO texto começa aqui.", "O texto começa aqui.", "menus"),
    ("Início | Notícias | Contato\nO texto.", "O texto.", "menus"),
    ("Ir para o conteúdo\nO texto.", "O texto.", "menus"),
    ("O texto.\nEste site usa cookies para melhorar a sua experiência.", "O texto.", "cookies"),
    ("Aceitar todos os cookies\nO texto.", "O texto.", "cookies"),
    ("O texto.\nPágina 2 de 10\nContinua.", "O texto.\nContinua.", "page_headers"),
    ("| a | b |\n| --- | --- |", "| a | b |", "page_headers"),
    ("O texto.\nDocumento assinado eletronicamente por Ana Sousa", "O texto.", "page_links"),
])  # fmt: skip
def test_lines_of_pages_go(text: str, kept: str, kind: str) -> None:
    result, counts = remove_boilerplate(text)
    assert result == kept
    assert list(counts) == [kind]
    assert remove_boilerplate(kept) == (kept, {})


@pytest.mark.parametrize("text", [
    "Início\n\nEra uma vez um rei.",  # one word of menus is a heading
    "A função setcookie() envia cookies ao navegador.\nOs cookies expiram em uma hora.",
    "1\n2\n12,5\n1994",  # cells of a table
    "Estavam presentes os seguintes Srs. Deputados:\nNinguém respondeu à chamada, e a sessão foi adiada.",
    "Ana Maria de Sousa\nJoão Carlos da Silva\nPedro Nunes\nRui Gomes",  # names without a heading
    "Texto para impressão em papel reciclado, disse a ministra.",
    "A Casa Civil respondeu.\n\n\n\nNada mais.",
    "* * *\n\nCapítulo II",
    "",
])  # fmt: skip
def test_texts_that_only_look_like_boilerplate_stay_as_they_are(text: str) -> None:
    assert remove_boilerplate(text) == (text, {})


def test_a_list_ends_before_text_and_before_the_next_heading() -> None:
    names = ["Ana Maria de Sousa", "João Carlos da Silva", "Pedro Nunes"]
    text = "\n".join(
        ["Faltaram à sessão os seguintes Srs. Deputados:", *names, "Falou o Sr. Deputado e ninguém mais quis falar."]
    )
    assert remove_boilerplate(text) == ("Falou o Sr. Deputado e ninguém mais quis falar.", {"attendance_lists": 4})
    misread = "\n".join(["Faltaram os Srs. Deputados:", *names, "aqui lê-se mal", "e aqui também", *names])
    assert remove_boilerplate(misread)[0].split("\n") == ["aqui lê-se mal", "e aqui também", *names]
    twice = "\n".join(["Srs. Deputados presentes à sessão:", *names, "Srs. Deputados que faltaram à sessão:", *names])
    assert remove_boilerplate(twice) == ("", {"attendance_lists": 8})


def test_rows_of_full_stops_become_three() -> None:
    text = "“Art. 5º ..........................\n. . . . . . . .\nNada mudou..... disse ele."
    assert remove_boilerplate(text) == (
        "“Art. 5º ...\n...\nNada mudou..... disse ele.", {"dot_leaders": 2})  # fmt: skip
    assert remove_boilerplate(text, BoilerplateConfig(dot_leaders=False)) == (text, {})


def test_c4s_lines_are_off_and_keep_sentences_alone() -> None:
    text = "Um título\nUma frase inteira termina aqui.\nDuas palavras.\nVeja mais...\nLigue o JavaScript para ver isto."
    assert remove_boilerplate(text) == (text, {})
    assert remove_boilerplate(text, BoilerplateConfig(c4_lines=True)) == (
        "Uma frase inteira termina aqui.", {"c4_lines": 4})  # fmt: skip


def test_each_kind_can_be_left_alone() -> None:
    config = BoilerplateConfig(attendance_lists=False, page_headers=False)
    assert remove_boilerplate(JOURNAL, config) == (JOURNAL, {})


def test_a_document_of_boilerplate_alone_is_dropped() -> None:
    error = "Acesso Negado! Essa transação foi rejeitada.\nEsse evento gerou o seguinte ticket: 11270188\n[Go Back]"
    text, counts = remove_boilerplate(error)
    assert text == ""
    assert drop_if_emptied(text, counts) == Drop("boilerplate", 3, 0)
    assert drop_if_emptied("", {}) is None
    assert drop_if_emptied("texto", {"menus": 1}) is None


def test_long_lines_take_no_long_time() -> None:
    for line in ("A" * 100_000, "cookie " * 20_000, "Início | " * 20_000, "Ana de " * 12, "|" * 100_000):
        text, changes = remove_boilerplate("\n".join(["Estavam presentes os Srs. Deputados:", *[line] * 20]))
        assert (text.count(line), changes) == (20, {})
