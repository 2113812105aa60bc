"""Personal data of fixed form: check digits, what is masked, what stays, and placeholders."""

import random

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.cleaning.personal_data import PersonalDataConfig, is_cnpj, is_cpf, is_nif, mask_personal_data

# Numbers made for this test by the published rules, but for the CNPJ with letters, which is the example of Receita
# Federal's own note on the new form.
CPF, CNPJ, CNPJ_WITH_LETTERS, NIF = "529.982.247-25", "11.222.333/0001-81", "12.ABC.345/01DE-35", "123456789"


@pytest.mark.parametrize(("is_valid", "number"), [
    (is_cpf, CPF), (is_cpf, "52998224725"), (is_cnpj, CNPJ), (is_cnpj, "11222333000181"),
    (is_cnpj, CNPJ_WITH_LETTERS), (is_cnpj, "12ABC34501DE35"), (is_nif, NIF), (is_nif, "501 964 843"),
])  # fmt: skip
def test_check_digits_accept_a_number_and_refuse_each_other_value_of_its_last_two_signs(is_valid, number: str) -> None:
    assert is_valid(number)
    signs = [place for place, sign in enumerate(number) if sign.isdigit()]
    places = signs[-1:] if is_valid is is_nif else signs[-2:]
    for place in places:
        others = set("0123456789") - {number[place]}
        assert not any(is_valid(number[:place] + digit + number[place + 1 :]) for digit in others)


@pytest.mark.parametrize(("is_valid", "number"), [
    (is_cpf, "111.111.111-11"), (is_cpf, "5299822472"), (is_cpf, "²2998224725"), (is_cpf, ""),
    (is_cnpj, "00.000.000/0000-00"), (is_cnpj, "12.abc.345/01DE-35"), (is_cnpj, "1122233300018"),
    (is_nif, "012345678"), (is_nif, "12345678"), (is_nif, "412345675"),
])  # fmt: skip
def test_what_is_no_number_is_refused(is_valid, number: str) -> None:
    assert not is_valid(number)


@pytest.mark.parametrize(("text", "masked", "kind"), [
    ("Escreva a ana.silva@exemplo.com.br.", "Escreva a [EMAIL].", "email"),
    ("mailto:joão_1+x@sub.dominio.pt>", "mailto:[EMAIL]>", "email"),
    (f"CPF nº {CPF}, casado", "CPF nº [CPF], casado", "cpf"),
    ("inscrito no CPF sob o n.º 52998224725.", "inscrito no CPF sob o n.º [CPF].", "cpf"),
    (f"| Maria | {CPF} |", "| Maria | [CPF] |", "cpf"),
    (f"portadora do CNPJ nº {CNPJ} (Processo)", "portadora do CNPJ nº [CNPJ] (Processo)", "cnpj"),
    (f"empresa ({CNPJ_WITH_LETTERS})", "empresa ([CNPJ])", "cnpj"),
    ("CNPJ: 12ABC34501DE35;", "CNPJ: [CNPJ];", "cnpj"),
    ("C.G.C. 11222333000181", "C.G.C. [CNPJ]", "cnpj"),
    ("contribuinte n.º 501 964 843,", "contribuinte n.º [NIF],", "nif"),
    ("NIF: 123456789", "NIF: [NIF]", "nif"),
    ("ligue (11) 91234-5678 já", "ligue [TELEFONE] já", "phone"),
    ("(0xx21) 2345 6789", "[TELEFONE]", "phone"),
    ("+55 11 91234-5678", "[TELEFONE]", "phone"),
    ("+351 912 345 678.", "[TELEFONE].", "phone"),
    ("Tel.: (71) 3372-1612", "Tel.: [TELEFONE]", "phone"),
    ("Telefone: +351 21 391 9000", "Telefone: [TELEFONE]", "phone"),
    ("Tel. 68 3302-0444/", "Tel. [TELEFONE]/", "phone"),
    ("telefone 213 919 000", "telefone [TELEFONE]", "phone"),
    ("São Paulo, 01310-100", "São Paulo, [CEP]", "cep"),
    ("CEP 70.150-900,", "CEP [CEP],", "cep"),
    ("CEP: 01310100", "CEP: [CEP]", "cep"),
    ("do IP 200.160.2.3 às", "do IP [IP] às", "ip"),
    ("ligado a 2804:14c:5b91::a1f:2.", "ligado a [IP].", "ip"),
])  # fmt: skip
def test_personal_data_is_masked_and_counted(text: str, masked: str, kind: str) -> None:
    assert mask_personal_data(text) == (masked, {kind: 1})
    assert mask_personal_data(masked) == (masked, {})


@pytest.mark.parametrize("text", [
    "O Sr. Deputado António Costa (PS) e a Ministra Maria Silva assinaram.",  # public officials in a public act
    "Lei nº 9.610/98, art. 5º, de 19.02.1998, publicada no D.O.U. de 20.2.1998",
    "Processo nº 0001234-56.2012.8.26.0100 e nº 23025.007170/86-02",
    "CPF 529.982.247-26",  # a wrong check digit
    "o número 52998224725 sem contexto e 123456789 também",
    "R$ 22.141.243.230,00 e 5.142.163.152",
    "seções 4.1.2.3 e 12.10.4.1, versão 10.0.19041.1",
    "rede 192.168.100.200, 127.0.0.1 e 999.160.2.3",
    "user@example.com, a@localhost, @usuario, SomaDe@2.0, e@, link@odata.deltaLink",
    "std::vector, 12:30:45, 08:00:00:01",
    "(20) 2345-6789 e (11) 0123-4567 e 0800 123 4567",
    "em 1994-1995, pp. 1234-5678, 1092-001 Lisboa",
    "nº 1.529.982.247-25, X12.ABC.345/01DE-35",
    "12345-6789, 123456-789, 12345-678-9",
    "preço de 912 345 678 escudos",
    "Telefone: a definir\n(não há)",
    "fax de 1990, o telefone 190",
    "",
])  # fmt: skip
def test_what_is_no_personal_data_of_these_kinds_stays(text: str) -> None:
    assert mask_personal_data(text) == (text, {})


def test_several_kinds_in_one_text_are_masked_each_once() -> None:
    text = f"Ana ({CPF}), ana@casa.pt, tel. (11) 3311-1234 / 3311-1235, CEP 01310-100; Loja {CNPJ}."
    masked, counts = mask_personal_data(text)
    assert masked == "Ana ([CPF]), [EMAIL], tel. [TELEFONE] / [TELEFONE], CEP [CEP]; Loja [CNPJ]."
    assert counts == {"cpf": 1, "email": 1, "phone": 2, "cep": 1, "cnpj": 1}


@pytest.mark.parametrize(("text", "masked", "kind"), [
    ("CPF/tel. 52998224725", "CPF/tel. [CPF]", "cpf"),
    ("tel. 11 33111234@casa.pt", "tel. 11 [EMAIL]", "email"),
    ("a.tel.33111234@casa.pt", "[EMAIL]", "email"),
])  # fmt: skip
def test_where_two_kinds_overlap_the_surer_one_is_masked(text: str, masked: str, kind: str) -> None:
    assert mask_personal_data(text) == (masked, {kind: 1})


def test_a_placeholder_can_be_chosen_and_a_kind_left_alone() -> None:
    config = PersonalDataConfig(cnpj=None, cpf="<documento>")
    assert mask_personal_data(f"{CPF} {CNPJ}", config) == (f"<documento> {CNPJ}", {"cpf": 1})


@pytest.mark.parametrize("placeholder", ["a@b", "[CPF 1]", "[\n]"])
def test_a_placeholder_that_could_pass_for_personal_data_is_refused(placeholder: str) -> None:
    with pytest.raises(InputError, match=r"cpf=.*a placeholder holds no digit, no @ and no line end"):
        PersonalDataConfig(cpf=placeholder)


def test_random_texts_of_digits_and_marks_are_read_to_their_end_and_masked_once() -> None:
    chance = random.Random(5)
    for _ in range(300):
        text = "".join(chance.choices("0123456789.-/()@: ABtel\n", k=200))
        masked, _ = mask_personal_data(text)
        assert mask_personal_data(masked)[0].count("[") >= masked.count("[")


def test_long_rows_of_one_sign_take_no_long_time() -> None:
    for sign in ("@", "1", ".", "1.", "a@", "(", "tel ", "::", "12:", "-123", "/0001-00", "CPF ", "x"):
        assert mask_personal_data(sign * 20_000) == (sign * 20_000, {})
