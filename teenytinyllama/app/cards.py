"""Conversations and search results as HTML. Texts of the data and of the model are escaped: data, never markup.

Gradio's own chatbot speaks English to screen readers and has a button that empties the page but not the session.
"""

import html

from .search import Match

_SHORT_CHARACTERS = 400  # longer texts are folded


def as_text(text: str) -> str:
    """Return a text as HTML that shows it; braces too, because Gradio's HTML component reads them as a template."""
    return html.escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def as_note(text: str) -> str:
    """Return a sentence of the page."""
    return f'<p class="ttl-note">{as_text(text)}</p>'


def as_conversation(messages: list[dict[str, str]]) -> str:
    """Return the messages of a conversation; white space as it was written."""
    return "".join(
        f'<div class="ttl-message ttl-{"user" if message["role"] == "user" else "model"}">'
        f"<strong>{'Você' if message['role'] == 'user' else 'Modelo'}</strong>"
        f'<p class="ttl-text">{as_text(message["content"])}</p></div>'
        for message in messages
    )


def as_cards(matches: list[Match], text: str) -> str:
    """Return the results for a text, best first, or why there are none."""
    if not text.strip():
        return as_note("Nada para procurar: escreva um texto, ou peça antes uma resposta.")
    if not matches:
        return as_note("Nada parecido nos dados de instrução.")
    cards = "".join(_card(match) for match in matches)
    compared = f'<p class="ttl-note">Comparado com: <q>{as_text(_shortened(text, 120))}</q></p>'
    return f'{compared}<ol class="ttl-cards">{cards}</ol>'


def _card(match: Match) -> str:
    percent = f"{match.percent:.0f}"
    others = "" if not match.others else f" · o mesmo texto aparece mais {match.others} " + (
        "vez" if match.others == 1 else "vezes")  # fmt: skip
    return (
        f'<li><div class="ttl-percent"><strong>{percent} %</strong>'
        f'<meter min="0" max="100" value="{percent}" aria-label="Semelhança: {percent} %"></meter></div>'
        f"<h3>Pergunta</h3>{_folded(match.pair.question)}<h3>Resposta</h3>{_folded(match.pair.answer)}"
        f'<p class="ttl-source">Fonte: {as_text(match.pair.source or "sem nome")}{others}</p></li>'
    )


def _folded(text: str) -> str:
    if len(text) <= _SHORT_CHARACTERS:
        return f'<p class="ttl-text">{as_text(text)}</p>'
    start = as_text(_shortened(text, _SHORT_CHARACTERS))
    return f'<details><summary class="ttl-text">{start}</summary><p class="ttl-text">{as_text(text)}</p></details>'


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters].rsplit(" ", 1)[0] + "…"
