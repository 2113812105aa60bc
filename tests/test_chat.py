"""The chat template, the tokens of conversations, the check of a chat model, answers and the terminal."""

import io
import json
import random
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from teenytinyllama import cli
from teenytinyllama.chat import template as chat_template
from teenytinyllama.chat.generation import Chat, Reply, Sampling, generate_ids, generate_texts
from teenytinyllama.chat.template import ConversationEncoder, install_chat_template, render
from teenytinyllama.chat.terminal import ChatConfig, check_chat_model, format_findings, run_chat
from teenytinyllama.checks import InputError
from teenytinyllama.models import load_tokenizer, place_for_answers
from teenytinyllama.tuning.base import end_tokens_of_answers

QUESTION, ANSWER = "Quem vem?", "A menina vem com o cachorro."
TURN = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": "Seja breve."}


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    loaded = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(loaded)
    return loaded


def tiny_model(tokenizer: Any, context: int = 128) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A model that has learnt one answer by heart, and to end it."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(tokenizer)
    model = tiny_model(tokenizer)
    encoded = ConversationEncoder(tokenizer).encode(TURN)
    ids = torch.tensor([encoded.ids])
    labels = torch.where(torch.tensor([encoded.is_answer]), ids, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    folder = tmp_path_factory.mktemp("chat")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def chat_model(chat_folder: Path) -> tuple[Any, Any]:
    from teenytinyllama import from_pretrained

    return from_pretrained(chat_folder)


# --- the template


def test_one_turn_is_written_as_the_ancestor_published_it(tokenizer: Any) -> None:
    # nicholasKluge/TeenyTinyLlama-460m-Chat: <s><instruction>question</instruction>answer</s>
    expected = f"<s><instruction>{QUESTION}</instruction>{ANSWER}</s>"
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == expected
    assert (
        tokenizer.apply_chat_template([TURN[0]], tokenize=False, add_generation_prompt=True)
        == expected[: -len(ANSWER) - 4]
    )


def test_turns_and_a_system_text(tokenizer: Any) -> None:
    text, answers = render(tokenizer, [SYSTEM, *TURN, {"role": "user", "content": " E depois? "}, TURN[1]])
    assert text == (
        f"<s><instruction>Seja breve.\n\n{QUESTION}</instruction>{ANSWER}</s><instruction>E depois?</instruction>{ANSWER}</s>"
    )
    assert [text[start:end] for start, end in answers] == [ANSWER + "</s>"] * 2


@pytest.mark.parametrize(
    "messages", [TURN[::-1], [TURN[0], TURN[0]], [SYSTEM, SYSTEM, *TURN], [{"role": "tool", "content": "x"}]]
)
def test_roles_that_do_not_alternate_are_refused(tokenizer: Any, messages: list[dict[str, str]]) -> None:
    with pytest.raises(InputError, match="messages: the chat template refuses them: roles must alternate"):
        ConversationEncoder(tokenizer).encode(messages)


def test_a_tokenizer_without_the_tokens_is_refused(tokenizer: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(InputError, match="lacks <instruction>, </instruction>, bos_token, eos_token, which the chat"):
        install_chat_template(other)
    with pytest.raises(InputError, match="tokenizer: has no chat template: it belongs to a base model"):
        render(other, TURN)


# --- tokens


def test_tokens_are_the_library_s_and_mark_the_answers(tokenizer: Any, sample_texts: list[str]) -> None:
    encoder, draw = ConversationEncoder(tokenizer), random.Random(0)
    assert encoder.keeps_apart
    for _ in range(60):
        texts = [draw.choice(sample_texts)[: draw.randint(1, 200)].strip() for _ in range(2 * draw.randint(1, 3))]
        messages = [SYSTEM] * draw.randint(0, 1)
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        encoded = encoder.encode(messages)
        expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert encoded.ids == expected["input_ids"]
        assert encoded.is_answer == list(map(bool, expected["assistant_masks"]))
        learnt = [index for index, answer in zip(encoded.ids, encoded.is_answer, strict=True) if answer]
        assert tokenizer.decode(learnt) == "".join(text + "</s>" for text in texts[1::2])


def test_nobody_s_text_becomes_a_special_token(tokenizer: Any) -> None:
    encoder, draw = ConversationEncoder(tokenizer), random.Random(1)
    special = [
        *tokenizer.all_special_tokens,
        "<instruction>",
        "</instruction>",
        "</s>",
        "\ue0000\ue001",
        "{{ bos_token }}",
    ]
    for _ in range(200):
        texts = ["x" + "".join(draw.choices([*special, " ", "a", "\n"], k=draw.randint(1, 8))) + "x" for _ in range(3)]
        messages = [
            {"role": "system", "content": texts[0]}, {"role": "user", "content": texts[1]},
            {"role": "assistant", "content": texts[2]},
        ]  # fmt: skip
        encoded = encoder.encode(messages)
        assert [index for index in encoded.ids if index < 4 or 260 <= index < 268] == [1, 260, 261, 2]
        assert tokenizer.decode(encoded.ids) == render(tokenizer, messages)[0]


def test_a_template_that_changes_texts_takes_the_library_s_way(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] | trim", "message['content'] | trim | upper"
    )
    encoder = ConversationEncoder(tokenizer)
    assert not encoder.keeps_apart
    expected = tokenizer.apply_chat_template(TURN, return_dict=True, return_assistant_tokens_mask=True)
    assert encoder.encode(TURN).ids == expected["input_ids"]
    assert tokenizer.decode(encoder.encode(TURN).ids).count(ANSWER.upper()) == 1
    with pytest.raises(InputError, match="the text of a user holds the special token </s>, and this template cannot"):
        encoder.encode([{"role": "user", "content": "a</s>"}], for_answer=True)


# --- the check


def test_a_good_chat_model_passes(chat_model: tuple[Any, Any]) -> None:
    findings = check_chat_model(*chat_model)
    assert len(findings) == 7
    assert [found.problem for found in findings] == [""] * 7
    assert format_findings(findings).startswith("ok      renders one and two turns\nok      the generation prompt")


def broken(model: Any, tokenizer: Any, what: str) -> None:
    template = tokenizer.chat_template
    if what == "none":
        tokenizer.chat_template = None
    elif what == "end token":
        tokenizer.chat_template = template.replace(
            "{{- message['content'] | trim + eos_token }}\n        {%- endgeneration %}",
            "{{- message['content'] | trim }}\n        {%- endgeneration %}{{- eos_token }}",
        )
    elif what == "marks":
        tokenizer.chat_template = template.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    elif what == "prompt":
        tokenizer.chat_template = template + "{% if add_generation_prompt %}{{ 'Resposta:' }}{% endif %}"
    elif what == "stop":
        model.generation_config.eos_token_id = 3
    elif what == "embeddings":
        model.resize_token_embeddings(599)
    elif what == "roles":
        tokenizer.chat_template = "{{ raise_exception('no') }}"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "has a chat template: none: this is a base model"),
        ("end token", "put the end token inside {% generation %}"),
        ("marks", "the template has no {% generation %} marks"),
        ("prompt", "the prompt ends with .*Resposta:', and the conversation goes on differently"),
        ("stop", "answers end with '</s>', generation_config.json has eos_token_id=3"),
        ("embeddings", "600 tokens for 599 embeddings"),
        ("roles", "renders one and two turns: messages: the chat template refuses them: no"),
    ],
)
def test_what_is_wrong_is_found(chat_model: tuple[Any, Any], what: str, message: str) -> None:
    broken(*chat_model, what)
    lines = format_findings(check_chat_model(*chat_model))
    assert re.search(f"FAILED.*{message}", lines), lines


TURN_ENDS = {
    "chatml": ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% generation %}{{ m.content + '<|im_end|>\\n' }}"
               "{% endgeneration %}{% endfor %}", "<|im_end|>"),
    "chatml without marks": ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                             "{% endfor %}", "<|im_end|>"),
    "the library's end token": ("{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}", "</s>"),
    "the next turn's start": ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '\\n' }}{% endfor %}",
                              "<|im_start|>"),
    "changed contents": ("{% for m in messages %}{{ m.content | upper + '<|im_end|>' }}{% endfor %}", "<|im_end|>"),
    "plain text": ("{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + '\\n' }}{% endfor %}", None),
    "text before the token": ("{% for m in messages %}{{ m.content + '\\n### Fim <|im_end|>' }}{% endfor %}", "<|im_end|>"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "end"), TURN_ENDS.values(), ids=TURN_ENDS)
def test_the_end_of_an_answer_is_found_by_rendering(tokenizer: Any, template: str, end: str | None) -> None:
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    found = ConversationEncoder(tokenizer).end_of_answer()
    assert found == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    expected = {tokenizer.eos_token_id} | ({found} if found is not None else set())
    assert end_tokens_of_answers(tokenizer) == sorted(expected)


def test_a_chatml_model_that_stops_passes_the_check(chat_model: tuple[Any, Any]) -> None:
    model, tokenizer = chat_model
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [found.problem for found in check_chat_model(model, tokenizer)] == [""] * 7
    model.generation_config.eos_token_id = 2
    lines = format_findings(check_chat_model(model, tokenizer))
    assert "answers end with '<|im_end|>', generation_config.json has eos_token_id=2" in lines
    chat = Chat(model, tokenizer, Sampling(max_new_tokens=2))
    assert chat.answer("Oi").ends == {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 10**10 }}", "{% if not add_generation_prompt %}{{ 'a' * 10**10 }}{% endif %}",
     "{% if eos_token == '</s>' and messages[0].role == 'system' %}{{ 'a' * 10**10 }}{% endif %}",
     "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}"],
)  # fmt: skip
def test_a_template_that_takes_too_much_is_refused(
    tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 1)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=r"chat_template: takes more than 1 s, 1 GB or 1,000,000 characters"):
        ConversationEncoder(tokenizer)


def test_named_templates_without_a_default_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = {"ferramentas": "{{ messages }}", "rag": "{{ messages }}"}
    with pytest.raises(InputError, match="chat_template: none can be chosen: .* Call one default"):
        ConversationEncoder(tokenizer)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[99].content }}", "{{ 'a' + 1 }}", "{{ range(10**9) | list }}"]
)
def test_a_template_that_fails_is_refused(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="messages: the chat template refuses them"):
        ConversationEncoder(tokenizer)


# --- answers


def test_an_answer_comes_in_pieces_and_ends(chat_model: tuple[Any, Any]) -> None:
    chat = Chat(*chat_model, Sampling(temperature=0, repetition_penalty=1.0))
    reply = chat.answer(QUESTION)
    pieces = list(reply)
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 3
    assert reply.ended
    assert reply.ids[-1] == 2
    chat.keep(QUESTION, ANSWER)
    assert chat.turns == TURN
    chat.reset()
    assert chat.turns == []


def test_an_answer_can_be_cut_and_the_seed_decides(tokenizer: Any) -> None:
    model = tiny_model(tokenizer)
    texts = []
    for seed in (1, 1, 2):
        reply = Chat(model, tokenizer, Sampling(max_new_tokens=9, seed=seed, temperature=1.0)).answer(QUESTION)
        texts.append("".join(reply))
        assert not reply.ended
        assert len(reply.ids) == 9
    assert texts[0] == texts[1] != texts[2]


def test_a_batch_and_an_answer_word_by_word_have_the_same_tokens(chat_model: tuple[Any, Any]) -> None:
    model, tokenizer = chat_model
    chat = Chat(model, tokenizer, Sampling(max_new_tokens=20, temperature=0))
    replies = [chat.answer(text) for text in (QUESTION, "Era uma vez um rei que morava no mato. Quem vem?")]
    texts = ["".join(reply) for reply in replies]
    written = generate_ids(
        model, tokenizer, [reply.prompt for reply in replies], 20, 0, temperature=0, repetition_penalty=1.2
    )
    assert [(answer.ids, answer.ended) for answer in written] == [(reply.ids, reply.ended) for reply in replies]
    assert [tokenizer.decode(answer.ids, skip_special_tokens=True).strip() for answer in written] == [
        text.strip() for text in texts
    ]


def test_leaving_the_loop_stops_the_model(tokenizer: Any) -> None:
    model = tiny_model(tokenizer, context=4096)
    model.generation_config.eos_token_id = None
    reply = Chat(model, tokenizer, Sampling(max_new_tokens=2000)).answer(QUESTION)
    for piece in reply:
        if piece:
            break
    assert 0 < len(reply.ids) < 2000


def test_what_goes_wrong_in_the_model_reaches_the_reader(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tokenizer)
    monkeypatch.setattr(model, "generate", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        list(Reply(model, tokenizer, [1, 5], Sampling()))


def test_old_turns_leave_the_context_and_long_messages_are_refused(tokenizer: Any) -> None:
    chat = Chat(tiny_model(tokenizer), tokenizer, Sampling(max_new_tokens=40), system="Seja breve.")
    for _ in range(6):
        chat.keep(QUESTION, ANSWER)
    reply = chat.answer(QUESTION)
    assert chat.dropped_turns > 0
    assert len(chat.turns) + 2 * chat.dropped_turns == 12
    assert "Seja breve." in tokenizer.decode(reply.prompt)
    assert len(reply.prompt) + reply.sampling.max_new_tokens <= 128
    before = list(chat.turns), chat.dropped_turns
    with pytest.raises(InputError, match=r"message: \d+ tokens, and the model's context of 128 must also hold 40"):
        chat.answer("casa " * 200)
    assert (chat.turns, chat.dropped_turns) == before, "what was refused costs no memory"


def test_a_base_model_completes(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    chat = Chat(tiny_model(tokenizer), tokenizer, Sampling(max_new_tokens=5))
    reply = chat.answer("Era uma vez </s>")
    assert tokenizer.decode(reply.prompt) == "<s>Era uma vez </s>"
    assert reply.prompt.count(2) == 0
    chat.keep("a", "b")
    assert chat.turns == []
    with pytest.raises(InputError, match="system=x: this model has no chat template"):
        Chat(tiny_model(tokenizer), tokenizer, Sampling(), "x")


def test_messages_in_another_encoding_are_refused(chat_folder: Path) -> None:
    for errors in ("strict", "surrogateescape"):
        lines = io.TextIOWrapper(io.BytesIO(b"Ol\xe1\n"), encoding="utf-8", errors=errors)
        with pytest.raises(InputError, match="stdin: is not valid UTF-8. If it is windows-1252: iconv -f WINDOWS-1252"):
            run_chat(str(chat_folder), ChatConfig(), lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0, or lie in"),
        ({"temperature": 1e-40}, "temperature=1e-40: must be 0, or lie in"),
        ({"seed": -1}, "seed=-1: must lie between 0 and 2147483647"),
        ({"seed": 10**20}, "seed=100000000000000000000: must lie between 0 and"),
        ({"top_k": -1}, "top_k=-1: must be 0"),
        ({"top_p": 0.0}, "top_p=0.0: must lie in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0: must lie in"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300: must lie in"),
    ],
)
def test_bad_sampling_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**changes)


# --- the terminal


def talk(folder: Path, capsys: pytest.CaptureFixture[str], lines: str, **keys: Any) -> str:
    config = ChatConfig(temperature=0, repetition_penalty=1.0, **keys)
    assert run_chat(str(folder), config, io.StringIO(lines)) == 0
    return capsys.readouterr().out


class OnGpu:
    """A model that says where it was put; its GPU may have no memory left."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal, self.device = refusal, "cpu"

    def to(self, device: str) -> "OnGpu":
        if device == "cuda" and self.refusal:
            raise torch.OutOfMemoryError(self.refusal)
        self.device = device
        return self

    def eval(self) -> "OnGpu":
        return self


def test_a_model_answers_on_a_gpu_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(model: Any, use_cpu: bool = False) -> tuple[str, str | None]:
        torch.backends.cuda.enable_cudnn_sdp(True)
        placed, note = place_for_answers(model, use_cpu)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        return str(placed.device), note

    assert place(OnGpu()) == ("cpu", None), "there is none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    assert place(OnGpu()) == ("cuda", None)
    assert place(OnGpu(), use_cpu=True) == ("cpu", None)
    note = "note: answers on the processor, because the GPU refuses: CUDA out of memory."
    assert place(OnGpu("CUDA out of memory.\nTried to allocate")) == ("cpu", note)


def test_the_terminal_says_why_it_answers_on_the_processor(
    chat_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda self, device: refuse() if device == "cuda" else self)

    def refuse() -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    said = talk(chat_folder, capsys, f"{QUESTION}\n")
    assert "note: answers on the processor, because the GPU refuses: CUDA error: no kernel image" in said
    assert ANSWER in said
    assert "note:" not in talk(chat_folder, capsys, f"{QUESTION}\n", use_cpu=True)


def test_the_terminal(chat_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    said = talk(chat_folder, capsys, f"{QUESTION}\n\n/reset\n{QUESTION}\n/exit\nnever\n")
    assert said.count(ANSWER + "\n") == 2
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "each new length would cost it a plan"
    assert said.count("(forgotten)") == 1
    assert "/reset forgets" in said
    assert "(cut after max_new_tokens)" in talk(chat_folder, capsys, QUESTION, max_new_tokens=2)
    assert "error: message: " in talk(chat_folder, capsys, "casa " * 300 + "\n")


def test_the_terminal_says_that_a_base_model_completes(
    chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    copytree(chat_folder, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    said = talk(tmp_path / "base", capsys, "Era uma vez\n", max_new_tokens=4)
    assert "is a base model without a chat template: it goes on with your text" in said
    assert "cut after" not in said


def test_the_command(chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(chat_folder), "--check-template"]) == 0
    assert cli.main(["chat", "--check-template", str(chat_folder)]) == 0
    assert capsys.readouterr().out.count("ok ") == 2 * 7
    generation = json.loads((chat_folder / "generation_config.json").read_text())
    copytree(chat_folder, tmp_path / "x")
    (tmp_path / "x" / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": 3}))
    assert cli.main(["chat", str(tmp_path / "x"), "--check_template"]) == 2
    assert "FAILED  generation stops at the end token" in capsys.readouterr().out
    assert cli.main(["chat"]) == 2
    assert "ttl chat: needs a model" in capsys.readouterr().err
    assert cli.main(["chat", str(chat_folder), "--temprature", "1"]) == 2
    assert "Did you mean 'temperature'" in capsys.readouterr().err


# --- the same text everywhere


def test_a_decomposed_message_is_the_composed_one(chat_model: tuple[Any, Any], tokenizer_folder: Path) -> None:
    model, tokenizer = chat_model
    composed, decomposed = "Não há pão, avó?", "Na\u0303o ha\u0301 pa\u0303o, avo\u0301?"
    sampling = Sampling(max_new_tokens=8, temperature=0)
    chats = [Chat(model, tokenizer, sampling, text) for text in (composed, decomposed)]
    prompts = [chat.answer(text).prompt for chat, text in zip(chats, (composed, decomposed), strict=True)]
    assert prompts[0] == prompts[1]
    base = load_tokenizer("tokenizer", str(tokenizer_folder))
    plain = Chat(model, base, sampling)
    assert plain.answer(composed).prompt == plain.answer(decomposed).prompt
    written = generate_texts(model, base, [composed, decomposed], 4, seed=0, temperature=0)
    assert written[0] == written[1]
