"""`ttl evaluate`: all suites offline from local files, stub models, equality with the harness's own command, refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from benchmark_rows import all_rows, write_rows
from hub_server import HubServer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel

from teenytinyllama import cli
from teenytinyllama.checks import InputError, MissingPackageError, StoppedResumable
from teenytinyllama.evaluation import benchmark_rows as evaluation_rows
from teenytinyllama.evaluation import evaluate as evaluate_module
from teenytinyllama.evaluation.benchmark_rows import MissingDataError, load_rows
from teenytinyllama.evaluation.config import SUITES, TASKS, TASKS_FOLDER, EvaluateConfig
from teenytinyllama.evaluation.evaluate import evaluate_model, list_models, weights_fingerprint
from teenytinyllama.evaluation.held_out import language_modeling_measures, load_held_out
from teenytinyllama.evaluation.marking import best_line, choice_results, trivial_lines
from teenytinyllama.evaluation.results import Measure, MeasuredTask, Score, is_trivial, read_results
from teenytinyllama.evaluation.score_report import draw_progress
from teenytinyllama.evaluation.scoring import encode_pair, score_continuations

pytest.importorskip("lm_eval")
import lm_eval.models.huggingface
from lm_eval.api.model import LM

from teenytinyllama.evaluation import harness
from teenytinyllama.evaluation.harness import HarnessModel, run_task
from teenytinyllama.tokenizer.encode import encode_texts

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("benchmarks"))


def make_model(folder: Path, tokenizer_folder: Path, context: int, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         max_position_embeddings=context, initializer_range=0.2, bos_token_id=1, eos_token_id=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), tokenizer_folder, 4096)


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    return LlamaForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


def read_measures(path: Path) -> list[Measure]:
    return [Measure(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def evaluate(model: Path, output: Path, **values: Any) -> Path:
    return evaluate_model(EvaluateConfig(model_name_or_path=str(model), output_dir=str(output), **values))


@pytest.fixture(scope="module")
def everything(model_folder: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All suites of a tiny random model."""
    output = tmp_path_factory.mktemp("all") / "out"
    return evaluate(model_folder, output, suite="all", data_dir=str(data_dir), held_out=["sample"], cloze_items=20,
                    held_out_max_tokens=2000, limit=8)  # fmt: skip


def test_all_suites_run_offline_from_local_files(everything: Path) -> None:
    results = read_results(everything / "results.json")
    assert {(score.suite, score.task) for score in results.scores} == {
        (suite, task) for suite, tasks in SUITES.items() for task in tasks
    }
    for score in results.scores:
        task = TASKS[score.task]
        assert (score.shots, score.metric) == (task.shots, task.metric)
        assert 6 <= score.num_items <= 8
        assert score.trivial is not None
        assert score.trivial_kind in ("constant", "majority", "length", "chance")
        assert score.stderr is not None
        assert score.task_hash is not None
        assert len(score.task_hash) == 64
        assert score.harness == "lm-evaluation-harness 0.4.13" or score.harness.startswith("lm-evaluation-harness 0.4.")
        assert score.truncated_prompts == 0
        assert (score.unparsable is not None) == (score.suite == "leaderboard")
        assert score.dataset_id is None
        if score.trivial < 1:
            assert score.normalised == pytest.approx((score.value - score.trivial) / (1 - score.trivial))
    assert "lm_eval" in results.versions
    measures = read_measures(everything / "measures.json")
    choice_tasks = {"ttl_arc", "ttl_arc_zero", "ttl_hellaswag", "ttl_mmlu", "ttl_truthfulqa", "ttl_cloze"}
    assert choice_tasks <= {row.task for row in measures if row.metric == "answer_bits_per_byte"}
    assert {row.metric for row in measures if row.suite == "lm"} == {"bits_per_byte", "perplexity"}
    assert all(row.value > 0 for row in measures if "bits" in row.metric)


def test_the_table_and_the_plot_are_written(everything: Path) -> None:
    text = (everything / "results.md").read_text(encoding="utf-8")
    assert "| ENEM, first 8 | accuracy | 3 | 8 |" in text
    assert "TeenyTinyLlama-160m" not in text  # of other questions
    assert (
        "- ENEM, first 8: no published scores stand here, because only the first 8 of 9 questions were asked." in text
    )
    assert "Bits per byte are per byte of the text in composed form (NFC)." in text
    assert "## Held-out text" in text
    assert "Not measured" not in text
    for score in read_results(everything / "results.json").scores:
        assert (f"**{100 * score.value:.2f} ±" in text) or is_trivial(score)
    assert (everything / "scores.png").stat().st_size > 10_000
    assert json.loads((everything / "run.json").read_text(encoding="utf-8"))["stage"] == "evaluate"
    assert (everything / "emissions.csv").is_file()


def test_a_second_start_measures_nothing_again(
    everything: Path, model_folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    shutil.copytree(everything, output)
    (output / "parts" / "final" / "ttl_oab.json").unlink()
    before = read_results(output / "results.json")
    asked = []
    run = sys.modules["teenytinyllama.evaluation.harness"].run_task
    monkeypatch.setattr(
        "teenytinyllama.evaluation.harness.run_task", lambda m, task, *a: asked.append(task.name) or run(m, task, *a)
    )
    evaluate(model_folder, output, suite="all", data_dir=str(data_dir), held_out=["sample"], cloze_items=20,
             held_out_max_tokens=2000, limit=8)  # fmt: skip
    assert asked == ["ttl_oab"]
    same = [(score.task, score.value, score.task_hash) for score in read_results(output / "results.json").scores]
    assert same == [(score.task, score.value, score.task_hash) for score in before.scores]
    # A question that has changed is asked again.
    rows = all_rows()["calame_pt"]
    changed = write_rows(tmp_path / "changed", calame_pt=[{**rows[0], "last_word": "perto"}, *rows[1:]])
    evaluate(model_folder, output, tasks=["calame,lambada"], data_dir=str(changed), limit=8)
    assert asked == ["ttl_oab", "ttl_calame"]


def test_batch_size_does_not_move_a_score(everything: Path, loaded: tuple[Any, Any], data_dir: Path) -> None:
    scores = {score.task: score.value for score in read_results(everything / "results.json").scores}
    for name in ("ttl_arc", "ttl_hellaswag", "ttl_truthfulqa", "ttl_calame", "ttl_enem", "ttl_assin2_sts"):
        for batch_size in (1, 3):
            outcome = run_task(HarnessModel(*loaded, batch_size), TASKS[name], str(data_dir), limit=8)
            assert outcome.values[TASKS[name].metric] == pytest.approx(scores[name], abs=1e-6), (name, batch_size)


def test_the_names_of_scores_say_what_was_computed_in_less_than_float32(
    model_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    halved = tmp_path / "halved"
    LlamaForCausalLM.from_pretrained(model_folder).bfloat16().save_pretrained(halved)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(halved)
    found = {}
    for model, precision, suffix in ((model_folder, "float32", ""), (model_folder, "bfloat16", ", bfloat16"),
                                     (model_folder, "saved", ""), (halved, "saved", ", bfloat16")):  # fmt: skip
        # One folder a model: what another precision measured is measured again.
        output = tmp_path / f"of-{model.name}"
        evaluate(model, output, tasks=["arc_zero", "enem"], data_dir=str(data_dir), limit=4, precision=precision)
        scores = read_results(output / "results.json").scores
        assert [score.name for score in scores] == [
            f"ENEM, first 4{suffix}", f"ARC-Challenge (pt), 0-shot, first 4{suffix}"
        ]  # fmt: skip
        bits = [row.value for row in read_measures(output / "measures.json") if "bits" in row.metric]
        found[model.name, precision] = bits
    exact, rounded = found[model_folder.name, "float32"], found[model_folder.name, "bfloat16"]
    assert found[model_folder.name, "saved"] == exact
    assert found["halved", "saved"] == rounded
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_measure_what_one_process_does(
    everything: Path, model_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Each rank scores a share: the same scores, prompts and bits per byte, and the energy counted once."""
    command = [sys.executable, "-m", "teenytinyllama", "evaluate", str(model_folder), "--num_processes", "2", "--suite",
               "all", "--data_dir", str(data_dir), "--held_out", "sample", "--cloze_items", "20", "--held_out_max_tokens",
               "2000", "--limit", "8", "--batch_size", "1", "--output_dir", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("## Held-out text") == 1
    alone, shared = (read_results(folder / "results.json").scores for folder in (everything, tmp_path / "out"))
    assert [(row.task, row.task_hash, row.num_items) for row in shared] == [
        (row.task, row.task_hash, row.num_items) for row in alone
    ]
    assert [row.value for row in shared] == pytest.approx([row.value for row in alone], abs=1e-4)
    measures = [
        [row.value for row in read_measures(folder / "measures.json")] for folder in (everything, tmp_path / "out")
    ]
    assert measures[1] == pytest.approx(measures[0], rel=1e-4)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["command"].startswith("ttl evaluate ")
    assert len(list((tmp_path / "out").glob("emissions*.csv"))) == 1


@pytest.mark.parametrize("name", ["arc", "arc_zero", "truthfulqa", "calame"])
def test_reading_a_context_once_gives_the_harness_numbers(
    name: str, loaded: tuple[Any, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = run_task(HarnessModel(*loaded, 4), TASKS["ttl_" + name], str(data_dir), limit=6)
    monkeypatch.setattr("teenytinyllama.evaluation.harness.can_score", lambda model: False)
    theirs = run_task(HarnessModel(*loaded, 4), TASKS["ttl_" + name], str(data_dir), limit=6)
    assert ours.values == pytest.approx(theirs.values, abs=1e-5)
    assert ours.task_hash == theirs.task_hash


def test_continuations_are_scored_as_by_hand(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    torch.manual_seed(3)

    def draw(count: int) -> list[int]:
        return torch.randint(4, 600, (count,)).tolist()

    contexts = [draw(7), draw(3), draw(1)]
    pairs = [(contexts[0], draw(3)), (contexts[1], draw(1)), (contexts[0], draw(1)), (contexts[2], draw(5)),
             (contexts[0], draw(4))]  # fmt: skip
    pairs.append((contexts[1], pairs[1][1] + draw(1)))
    wanted = []
    with torch.no_grad():
        for context, continuation in pairs:
            logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].double()
            picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(continuation)[:, None])
            wanted.append((float(picked.sum()), logits.argmax(-1).tolist() == continuation))
        greedy = contexts[0] + [int(model(torch.tensor([contexts[0]])).logits[0, -1].argmax())]
    for batch_size in (1, 2, 8):
        found = score_continuations(model, pairs, batch_size)
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in wanted], abs=1e-4)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]
    assert score_continuations(model, [(contexts[0], greedy[-1:])], 1)[0][1] is True


class Constant(LM):
    """Answers everything in the same way: a text, or a likelihood by the answer's length or place."""

    def __init__(self, text: str = "", nats: Any = lambda text, place: 0.0) -> None:
        super().__init__()
        self.text, self.nats = text, nats

    def loglikelihood(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return [(self.nats(asked.args[1][1:], asked.idx), asked.args[1] == self.text) for asked in requests]

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        return [self.text for _ in requests]

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        raise NotImplementedError


LABELS = {"assin2_rte": ("Sim", "Não"), "faquad_nli": ("Sim", "Não"), "hatebr": ("Sim", "Não"), "hate_speech": ("Sim", "Não"),
          "tweetsentbr": ("Positivo", "Neutro", "Negativo")}  # fmt: skip


@pytest.mark.parametrize(("name", "label"), [(name, label) for name, labels in LABELS.items() for label in labels])
def test_one_label_to_everything_scores_exactly_its_line(name: str, label: str, data_dir: Path) -> None:
    task = TASKS["ttl_" + name]
    outcome = run_task(Constant(f" {label}"), task, str(data_dir))
    lines = trivial_lines(task.kind, task.metric, outcome.rows)
    assert outcome.values[task.metric] == lines[f"always {label!r}"][1]
    assert outcome.values[task.metric] <= best_line(lines)[1]


@pytest.mark.parametrize("name", ["enem", "bluex", "oab"])
def test_one_letter_to_everything_scores_exactly_its_line(name: str, data_dir: Path) -> None:
    task = TASKS["ttl_" + name]
    for place, letter in enumerate("ABCD"):
        outcome = run_task(Constant(f" {letter}"), task, str(data_dir))
        lines = trivial_lines(task.kind, task.metric, outcome.rows)
        assert outcome.values["acc"] == pytest.approx(lines[f"always choice {place + 1}"][1])
    assert run_task(Constant("não sei"), task, str(data_dir)).values == {"acc": 0.0, "unparsable": 1.0}


def test_a_template_is_compiled_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    plain = harness.templates.compile

    def compile_template(source: str, *arguments: Any, **more: Any) -> Any:
        compiled.append(source)
        return plain(source, *arguments, **more)

    monkeypatch.setattr(harness.templates, "compile", compile_template)
    run_task(Constant(" Sim"), TASKS["ttl_hatebr"], str(data_dir))
    assert 0 < len(compiled) == len(set(compiled))
    assert "from_string" not in vars(harness.templates), "the harness is left as it was"


@pytest.mark.parametrize("name", ["arc", "hellaswag", "mmlu"])
def test_choices_by_place_and_length_score_exactly_their_lines(name: str, data_dir: Path) -> None:
    task = TASKS["ttl_" + name]
    first = run_task(Constant(), task, str(data_dir))
    lines = trivial_lines(task.kind, task.metric, first.rows)
    assert first.values["acc"] == pytest.approx(lines["always choice 1"][1])
    for line, sign in (("the longest choice", 1.0), ("the shortest choice", -1.0)):
        outcome = run_task(Constant(nats=lambda text, place, sign=sign: sign * len(text)), task, str(data_dir))
        assert outcome.values["acc"] == pytest.approx(lines[line][1])


def test_the_other_kinds_of_tasks_have_exact_lines_too(data_dir: Path) -> None:
    truth = run_task(Constant(), TASKS["ttl_truthfulqa"], str(data_dir))
    lines = trivial_lines("truth", "mc2", truth.rows)
    assert truth.values["mc2"] == pytest.approx(lines["the same probability for each"][1])
    similarity = run_task(Constant(" 3,0"), TASKS["ttl_assin2_sts"], str(data_dir))
    assert similarity.values == {"pearson": 0.0, "unparsable": 0.0}
    word = run_task(Constant(" ali"), TASKS["ttl_calame"], str(data_dir))
    assert word.values["acc"] == pytest.approx(best_line(trivial_lines("word", "acc", word.rows))[1])
    assert word.values["acc"] == pytest.approx(8 / 12)


def test_random_weights_know_nothing(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [{**row, "id": f"q{copy}-{row['id']}", "instruction": f"{row['instruction']} ({copy})"}
            for copy in range(6) for row in all_rows()["arc_pt_test"]]  # fmt: skip
    outcome = run_task(HarnessModel(*loaded, 8), TASKS["ttl_arc_zero"], str(write_rows(tmp_path, arc_pt_test=rows)))
    lines = trivial_lines("choices", "acc_norm", outcome.rows)
    near = [
        abs(outcome.values["acc_norm"] - lines[line][1])
        for line in ("a guess", "the longest choice", "the shortest choice")
    ]
    assert min(near) <= 3 * outcome.stderrs["acc_norm"]
    # A model that has learnt nothing spreads its probability: about log2(600) bits a token.
    assert 0.5 < outcome.values["answer_bits_per_byte"] < 12


def test_prompts_that_do_not_fit_are_counted_and_their_answers_still_scored(
    tokenizer_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "short", tokenizer_folder, 128)
    output = evaluate(folder, tmp_path / "out", tasks=["arc", "hatebr", "arc_zero"], data_dir=str(data_dir))
    scores = {score.task: score for score in read_results(output / "results.json").scores}
    assert scores["ttl_arc"].truncated_prompts == scores["ttl_arc"].num_items == 12
    assert scores["ttl_hatebr"].truncated_prompts == 11
    assert scores["ttl_arc_zero"].truncated_prompts == 0
    tiny = make_model(tmp_path / "tiny", tokenizer_folder, 32)
    with pytest.raises(
        InputError, match=r"tasks=ttl_hatebr: the model's context of 32 tokens has no room for an answer of 32"
    ):
        evaluate(tiny, tmp_path / "none", tasks=["hatebr"], data_dir=str(data_dir))
    tiny = make_model(tmp_path / "tinier", tokenizer_folder, 4)
    with pytest.raises(
        InputError, match=r"tasks=ttl_arc_zero: an answer of question \d+ has \d+ tokens and the model's context only 4"
    ):
        evaluate(tiny, tmp_path / "none2", tasks=["arc_zero"], data_dir=str(data_dir))


def test_missing_data_is_reported_and_the_rest_is_measured(model_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", calame_pt=None, hellaswag_pt_val=None)
    output = evaluate(model_folder, tmp_path / "out", suite="signal", data_dir=str(data))
    assert {score.task for score in read_results(output / "results.json").scores} == {"ttl_lambada", "ttl_arc_zero"}
    text = (output / "results.md").read_text(encoding="utf-8")
    assert "| ttl_calame |" in text
    assert "holds no calame_pt or calame or calamept_all" in text
    assert "needs held-out text" in text
    with pytest.raises(InputError, match=r"^tasks=calame: nothing can be measured\. ttl_calame: .*holds no calame_pt"):
        evaluate(model_folder, tmp_path / "none", tasks=["calame"], data_dir=str(data))
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


FROM_THE_HUB = """
import sys
from teenytinyllama.evaluation.benchmark_rows import MissingDataError, load_rows
for name in sys.argv[1:]:
    try:
        rows = load_rows(name, None)
        print(name, len(rows.test), len(rows.shots), rows.origin.revision, rows.origin.config, rows.test[0].get("last_word"))
    except MissingDataError as error:
        print(name, error)
"""


def test_datasets_are_read_from_the_hub_at_a_commit_and_then_without_it(tmp_path: Path) -> None:
    """The Hub's parquet copy of a dataset whose own branch is a script, a plain file, and what is not there."""
    rows = all_rows()
    script = tmp_path / "hub" / "datasets" / "alexandrainst" / "m_arc"
    (script / "main").mkdir(parents=True)
    (script / "main" / "m_arc.py").write_text("raise SystemExit('a script was run')")
    for split in ("test", "train"):
        for config in ("pt", "es"):
            folder = script / "refs%2Fconvert%2Fparquet" / config / split
            folder.mkdir(parents=True)
            table = pyarrow.Table.from_pylist(rows[f"arc_pt_{split}"][: None if config == "pt" else 1])
            pyarrow.parquet.write_table(table, folder / "0000.parquet")
    plain = tmp_path / "hub" / "datasets" / "NOVA-vision-language" / "calame-pt" / "main"
    plain.mkdir(parents=True)
    (plain / "calamept_all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["calame_pt"]))
    for config in ("a", "b"):
        folder = tmp_path / "hub/datasets/TucanoBR/lambada-pt/refs%2Fconvert%2Fparquet" / config / "train"
        folder.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows["lambada_pt"]), folder / "0000.parquet")

    def read(*names: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB, *names], capture_output=True, text=True, check=False,
            env={**server.environment(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY), **environment},
        )  # fmt: skip

    with HubServer(tmp_path / "hub") as server:
        commit = server.commit("alexandrainst/m_arc", "refs/convert/parquet", "dataset")
        online = read("arc", "calame", "hellaswag")
        assert online.returncode == 0, online.stderr
        arc, calame, missing = online.stdout.splitlines()
        assert arc == f"arc 12 30 {commit} pt None"
        assert calame == f"calame 12 0 {server.commit('NOVA-vision-language/calame-pt', 'main', 'dataset')} None ali"
        assert missing.startswith("hellaswag the dataset alexandrainst/m_hellaswag cannot be had from the Hub: 401")
        assert "has several configurations (a, b)" in read("lambada").stderr
        server.fail("")  # whatever is asked for now would fail
        offline = read("arc", "calame", "hellaswag", HF_HUB_OFFLINE="1")
        assert offline.stdout.splitlines()[:2] == [arc, calame]
        assert "cannot be had from the Hub: " in offline.stdout.splitlines()[2]


def test_without_the_network_the_hub_is_reported_as_missing() -> None:
    with pytest.raises(MissingDataError, match=r"the dataset alexandrainst/m_arc cannot be had from the Hub: "):
        load_rows("arc", None)


def _changed(name: str, **columns: Any) -> list[dict[str, Any]]:
    return [{**row, **columns} for row in all_rows()[name]]


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        ("arc", {"arc_pt_test": [{"id": 1, "question": "?", "answer": "A"}]},
         r"arc_pt_test\.jsonl: column instruction, option_a, option_b is missing in row 1\. Expected are answer, instruction, "
         r"option_a, option_b; found are answer, id, question"),
        ("arc", {"arc_pt_test": _changed("arc_pt_test", answer="F")}, r"row 1: answer is 'F', outside the set 'A', 'B', 'C'"),
        ("arc", {"arc_pt_test": _changed("arc_pt_test", instruction=3)}, r"row 1: instruction is '3', but must be a text"),
        ("arc", {"arc_pt_test": []}, r"arc_pt_test\.jsonl: holds no row"),
        ("arc", {"arc_pt_train": all_rows()["arc_pt_train"][:9]}, r"9 solved examples are there and 25 are shown"),
        ("hatebr", {"hatebr_offensive_test": _changed("hatebr_offensive_test", label=2)}, r"row 1: label is 2, outside the set 0, 1"),
        ("hatebr", {"hatebr_offensive_train": all_rows()["hatebr_offensive_train"][1:]},
         r"hatebr_offensive_train\.jsonl: lacks rows that the benchmark shows as solved examples \(idx=48\)"),
        ("hellaswag", {"hellaswag_pt_val": _changed("hellaswag_pt_val", endings="a")}, r"endings is 'a', but must be a list of texts"),
        ("oab", {"oab_exams": _changed("oab_exams", choices=["a"])}, r"choices is .*, but must be a mapping of text and label"),
        ("oab", {"oab_exams": all_rows()["oab_exams"][:15]}, r"holds no question that can be used"),
        ("assin2_sts", {"assin2_test": _changed("assin2_test", relatedness_score="x")}, r"relatedness_score is 'x', but must be a number"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_refused_before_any_work(
    task: str, files: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data", **files)
    with pytest.raises(InputError, match=message):
        evaluate(model_folder, tmp_path / "out", tasks=[task], data_dir=str(data))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_name_or_path": ""}, r"model_name_or_path: missing\. Write ttl evaluate MODEL"),
        ({"suite": "lm", "tasks": ["arc"]}, r"suite=lm, tasks=arc: give one of the two"),
        ({"tasks": []}, r"tasks=\[\]: empty"),
        ({"tasks": [","]}, r"tasks=\[\]: empty"),
        ({"batch_size": 0}, r"batch_size=0: must be at least 1"),
        ({"checkpoints": True, "revision": "x"}, r"checkpoints, revision=x: give one of the two"),
        ({"country_iso_code": "XXX"}, r"country_iso_code=XXX"),
    ],
)
def test_configs_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluateConfig(**{"model_name_or_path": "x", **values})


def test_no_repository_is_refused() -> None:
    with pytest.raises(InputError, match=r"checkpoints: a/b/c is neither a folder nor a Hub repository \(owner/name\)"):
        list_models("a/b/c", None, checkpoints=True)


def test_a_model_without_tokenizer_a_foreign_folder_and_a_missing_extra_are_refused(
    model_folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"bare: holds no tokenizer"):
        evaluate(bare, tmp_path / "out", tasks=["arc"], data_dir=str(data_dir))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("a")
    with pytest.raises(InputError, match=r"holds no evaluation \(letter\.txt\)\. Choose a new folder"):
        evaluate(model_folder, tmp_path / "mine", tasks=["arc"], data_dir=str(data_dir))
    with pytest.raises(InputError, match=r"suite=lm: needs held-out text\. Give held_out"):
        evaluate(model_folder, tmp_path / "out", suite="lm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'teenytinyllama\[eval\]'"):
        evaluate(model_folder, tmp_path / "out", tasks=["arc"], data_dir=str(data_dir))


def test_importing_the_verb_needs_no_harness() -> None:
    code = (
        "import sys\n"
        "for name in ('lm_eval', 'datasets'): sys.modules[name] = None\n"
        "import teenytinyllama.evaluation.evaluate, teenytinyllama.evaluation.marking, teenytinyllama.evaluation.score_report\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_verb_prints_the_table(
    model_folder: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(model_folder), "--tasks", "calame", "lambada", "--data_dir", str(data_dir), "--output_dir",
             str(tmp_path / "out")]  # fmt: skip
    assert cli.main(words) == 0
    assert "| CALAME-PT | accuracy | 0 | 12 |" in capsys.readouterr().out
    assert cli.main(["evaluate", str(model_folder), "--tasks", "calam"]) == 2
    assert "Did you mean 'calame'?" in capsys.readouterr().err
    assert cli.main(["evaluate", "--help"]) == 0
    assert "--data_dir" in capsys.readouterr().out


def test_language_modelling_of_any_text_equals_a_hand_computation(
    loaded: tuple[Any, Any], tokenizer_folder: Path, tmp_path: Path, corpus_folder: Path, packed_folder: Path
) -> None:
    model, tokenizer = loaded
    texts = [
        json.loads(line)["text"] for line in (corpus_folder / "curtas.jsonl").read_text(encoding="utf-8").splitlines()
    ][:2]
    long = " ".join(texts)
    for name, text in (("livro", long), ("nota", texts[0])):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    held_out = load_held_out([str(tmp_path)], tokenizer)
    context, stride = 48, 16
    nats = tokens = 0.0
    for text in (long, texts[0]):
        ids = torch.tensor([1, *tokenizer(text, add_special_tokens=False)["input_ids"]])
        for place in range(1, len(ids)):
            first = 0 if place < context else stride * math.ceil((place - context + 1) / stride)
            with torch.no_grad():
                logits = model(input_ids=ids[None, first:place]).logits[0, -1].double()
            nats -= torch.log_softmax(logits, -1)[ids[place]].item()
            tokens += 1
    total_bytes = len(long.encode()) + len(texts[0].encode())
    for batch_size in (1, 5):
        rows = language_modeling_measures(model, held_out, batch_size, context, stride, None, {"breve": ["nota"]})
        found = {(row.part, row.metric): row.value for row in rows}
        assert found[None, "bits_per_byte"] == pytest.approx(nats / math.log(2) / total_bytes, rel=1e-5)
        assert found[None, "perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert found["register: breve", "bits_per_byte"] == found["nota", "bits_per_byte"]
        shares = {name: len(text.encode()) / total_bytes for name, text in (("livro", long), ("nota", texts[0]))}
        weighted = sum(share * found[name, "bits_per_byte"] for name, share in shares.items())
        assert weighted == pytest.approx(found[None, "bits_per_byte"], rel=1e-6)
    with pytest.raises(InputError, match=r"context=8192: the model reads at most 4096 tokens"):
        language_modeling_measures(model, held_out, 1, 8192)
    for wide in (64, 32):  # windows of 32 tokens side by side leave the first token of each without a predecessor
        with pytest.raises(InputError, match=rf"stride={wide}: must be 1 to 31"):
            language_modeling_measures(model, held_out, 1, 32, wide)
    with pytest.raises(
        InputError, match=r"registers\.breve=notas: no held-out document has this source\. Did you mean 'nota'"
    ):
        language_modeling_measures(model, held_out, 1, registers={"breve": ["notas"]})
    packed = load_held_out([str(packed_folder)], tokenizer)
    assert len(packed.texts) == len(packed.documents)
    assert [len(text.encode()) for text in packed.texts] == packed.documents["num_bytes"].tolist()
    assert set(packed.source_names) == {"contos", "curtas"}


def test_held_out_text_that_cannot_be_used_is_refused(
    loaded: tuple[Any, Any], packed_folder: Path, tmp_path: Path
) -> None:
    from teenytinyllama import train_tokenizer

    other = train_tokenizer(["um texto bem diferente para outro vocabulário"] * 20, vocab_size=380)
    with pytest.raises(InputError, match=r"was packed with another tokenizer than the model's"):
        load_held_out([str(packed_folder)], other)
    (tmp_path / "leer.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"holds no document with text"):
        load_held_out([str(tmp_path)], loaded[1])


def test_checkpoints_are_walked_and_the_walk_resumes(tokenizer_folder: Path, data_dir: Path, tmp_path: Path) -> None:
    run = make_model(tmp_path / "run", tokenizer_folder, 256, seed=3)
    for step in (9, 20, 30):
        make_model(run / f"checkpoint-{step}", tokenizer_folder, 256, seed=step)
        if step < 30:
            (run / f"checkpoint-{step}" / "complete.json").write_text("{}")
    metrics = [{"step": step, "tokens": step * 100, "loss": 1.0, "kwh": step / 1000} for step in (5, 15, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (run / "config.json").rename(run / "kept.json")
    (run / "adapter_config.json").write_text("{}")  # of a LoRA run that was not merged
    assert list_models(str(run), None, checkpoints=True)[-1].name_or_path == str(run)
    (run / "adapter_config.json").unlink()
    (run / "kept.json").rename(run / "config.json")
    stops = list_models(str(run), None, checkpoints=True)
    assert [(stop.step, stop.tokens) for stop in stops] == [(9, 900), (20, 2000), (None, None)]  # 30 is not whole
    assert stops[0].kwh == pytest.approx(0.009)
    output = evaluate(run, tmp_path / "out", tasks=["calame", "arc_zero"], data_dir=str(data_dir), checkpoints=True)
    results = read_results(output / "results.json")
    assert [(score.task, score.step, score.tokens) for score in results.scores if score.task == "ttl_calame"] == [
        ("ttl_calame", None, None), ("ttl_calame", 9, 900), ("ttl_calame", 20, 2000)]  # fmt: skip
    assert (output / "progress.png").stat().st_size > 10_000
    assert "| 9 | 900 | - |" in (output / "results.md").read_text(encoding="utf-8")
    times = {path: path.stat().st_mtime_ns for path in output.glob("parts/*/*.json")}
    assert len(times) == 6
    (output / "parts" / "step20" / "ttl_calame.json").unlink()
    evaluate(run, tmp_path / "out", tasks=["calame", "arc_zero"], data_dir=str(data_dir), checkpoints=True)
    changed = {path for path in output.glob("parts/*/*.json") if path.stat().st_mtime_ns != times[path]}
    assert {path.relative_to(output).as_posix() for path in changed} == {"parts/step20/ttl_calame.json"}
    with pytest.raises(InputError, match=r"has no complete checkpoint"):
        list_models(str(run / "checkpoint-9"), None, checkpoints=True)


def test_no_length_costs_a_plan_of_cudnn_s_attention(
    model_folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaModel.forward
    used: list[bool] = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(torch.backends.cuda.cudnn_sdp_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", watched)
    torch.backends.cuda.enable_cudnn_sdp(True)
    evaluate(model_folder, tmp_path / "out", tasks=["oab", "arc_zero"], data_dir=str(data_dir), limit=2)
    assert used
    assert not any(used)
    assert torch.backends.cuda.cudnn_sdp_enabled(), "a training in the same process has it again"


@pytest.mark.parametrize("with_scores", [True, False])
def test_the_plot_over_checkpoints_goes_forward(with_scores: bool) -> None:
    steps = (160, 80, 300)  # as files come: by name
    scores = [
        Score(suite="signal", task="ttl_arc_zero", name="ARC", metric="acc", metric_name="accuracy", value=step / 1000, stderr=0.01, trivial=0.29,
              shots=0, num_items=9, step=step, tokens=10 * step) for step in steps if with_scores
    ]  # fmt: skip
    measures = [Measure("lm", "held_out", "bits_per_byte", 400.0 / step, step=step, tokens=10 * step) for step in steps]
    measures += [Measure("lm", "held_out", "bits_per_byte", 9.0, part="web", step=80, tokens=800)]
    measures += [Measure(suite, "ttl_arc_zero", "answer_bits_per_byte", 2.0, step=step, tokens=10 * step)
                 for suite in ("paper", "signal") for step in steps]  # fmt: skip
    axes = draw_progress(scores, measures, {80: 0.1, 160: 0.2, 300: None}).axes
    assert [axis.get_xlabel() for axis in axes] == ["tokens", "kWh"] * (1 + with_scores)
    curves = [[list(line[0].get_xdata()) for line in axis.containers] for axis in axes]
    tokens, energy = [800, 1600, 3000], [0.1, 0.2]
    assert curves[-2:] == [[tokens] * 2, [energy] * 2]
    labels = [text.get_text() for text in axes[-2].get_legend().get_texts()]
    assert labels == ["held-out text", "right answers of " + ("ARC" if with_scores else "ttl_arc_zero")]
    if with_scores:
        assert curves[:2] == [[tokens], [energy]]
        assert list(axes[0].containers[0][0].get_ydata()) == [8, 16, 30]


def test_models_are_told_apart_by_their_weights(loaded: tuple[Any, Any], model_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder)
    assert weights_fingerprint(model) == weights_fingerprint(loaded[0])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[-1, -1] += 0.5
    assert weights_fingerprint(model) != weights_fingerprint(loaded[0])


def test_the_results_of_a_finished_run_lie_where_its_card_looks(
    model_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(model_folder, run)
    (run / "run.json").write_text("{}")
    evaluate_model(EvaluateConfig(model_name_or_path=str(run), tasks=["calame"], data_dir=str(data_dir), limit=4))
    assert not (run / "results.json").exists()  # a part of the questions is no score
    evaluate_model(EvaluateConfig(model_name_or_path=str(run), tasks=["calame"], data_dir=str(data_dir)))
    assert [score.num_items for score in read_results(run / "results.json").scores] == [12]


def test_scores_of_other_weights_and_of_first_questions_are_not_this_model_s(
    model_folder: Path, tokenizer_folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(model_folder, tmp_path / "run")
    (run / "run.json").write_text("{}")

    def measure(task: str, **more: Any) -> None:
        evaluate_model(EvaluateConfig(model_name_or_path=str(run), tasks=[task], data_dir=str(data_dir), **more))

    measure("lambada", limit=4)
    measure("calame")
    assert {score.task for score in read_results(run / "evaluation" / "results.json").scores} == {
        "ttl_lambada", "ttl_calame"}  # fmt: skip
    assert {score.task for score in read_results(run / "results.json").scores} == {"ttl_calame"}
    other = make_model(tmp_path / "other", tokenizer_folder, 4096, seed=7)
    shutil.copy(other / "model.safetensors", run)  # trained anew
    measure("arc_zero")
    for place in (run, run / "evaluation"):
        assert {score.task for score in read_results(place / "results.json").scores} == {"ttl_arc_zero"}
    assert (run / "evaluation" / "parts" / "final" / "ttl_calame.json").is_file()  # nothing is lost


def test_a_folder_with_the_evaluation_of_another_model_is_refused(
    model_folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model_folder, tmp_path / "out", tasks=["calame"], data_dir=str(data_dir))
    other = shutil.copytree(model_folder, tmp_path / "other")
    with pytest.raises(
        InputError, match=r"output_dir=.*out: holds the evaluation of .*\. Choose another folder for .*other"
    ):
        evaluate(other, tmp_path / "out", tasks=["calame"], data_dir=str(data_dir))
    monkeypatch.chdir(model_folder.parent)
    evaluate(Path(model_folder.name), tmp_path / "out", tasks=["calame"], data_dir=str(data_dir))  # the same one


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_that_goes_on(
    model_folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stop(path: Path, measured: MeasuredTask) -> None:
        write(path, measured)
        os.kill(os.getpid(), number)

    write, before = evaluate_module.write_measured_task, signal.getsignal(number)
    monkeypatch.setattr(evaluate_module, "write_measured_task", stop)
    with pytest.raises(StoppedResumable, match=f"{number.name}; what is measured is kept; the same command goes on"):
        evaluate(model_folder, tmp_path / "out", tasks=["calame", "lambada"], data_dir=str(data_dir))
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    output = evaluate(model_folder, tmp_path / "out", tasks=["calame", "lambada"], data_dir=str(data_dir))
    assert len(read_results(output / "results.json").scores) == 2


def test_every_task_file_is_valid_for_the_harness(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    files = sorted(TASKS_FOLDER.glob("*.yaml"))
    assert {path.stem for path in files} == set(TASKS)
    (tmp_path / "cloze.jsonl").write_text('{"sentence": "O gato dorme na", "last_word": "casa"}\n')
    monkeypatch.setenv("TTL_EVALUATION_DATA", str(data_dir))
    monkeypatch.setenv("TTL_CLOZE_FILE", str(tmp_path / "cloze.jsonl"))
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    for name, task in TASKS.items():
        loaded = manager.load([name])["tasks"][name]
        assert loaded.config.num_fewshot == task.shots
        assert task.metric in loaded.aggregation()
        assert loaded.VERSION == 1.0


@pytest.mark.slow
def test_the_harness_command_gives_the_same_numbers(model_folder: Path, data_dir: Path, tmp_path: Path) -> None:
    names = ["ttl_arc", "ttl_mmlu", "ttl_truthfulqa", "ttl_oab", "ttl_assin2_sts", "ttl_tweetsentbr", "ttl_calame"]
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model_folder},dtype=float32",
               "--tasks", *names, "--include_path", str(TASKS_FOLDER), "--device", "cpu", "--batch_size", "4",
               "--metadata", f"data_dir={data_dir}", "--output_path", str(tmp_path / "theirs"), "--log_samples"]  # fmt: skip
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "HF_DATASETS_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text(encoding="utf-8"))
    output = evaluate(model_folder, tmp_path / "ours", tasks=names, data_dir=str(data_dir))
    for score in read_results(output / "results.json").scores:
        found = theirs["results"][score.task]
        assert score.value == pytest.approx(found[f"{score.metric},none"], abs=1e-6), score.task
        assert score.task_hash == theirs["task_hashes"][score.task]
        assert score.shots == theirs["n-shot"][score.task]


def test_the_harness_class_is_the_one_that_its_command_uses() -> None:
    assert issubclass(HarnessModel, lm_eval.models.huggingface.HFLM)


def test_the_signal_during_training_equals_the_harness(loaded: tuple[Any, Any], data_dir: Path, tmp_path: Path) -> None:
    from teenytinyllama.data.sample import sample_documents
    from teenytinyllama.evaluation.scoring import cloze_task, local_tasks, make_cloze, score_signal, write_cloze

    model, tokenizer = loaded
    texts = [row["text"] for row in sample_documents("validation", 40)]
    cloze = cloze_task(texts, tokenizer, 20, 10**6)
    assert cloze is not None
    assert len(cloze.questions) == 20
    short = cloze_task(texts, tokenizer, 20, 300)
    assert short is not None
    assert short.num_tokens <= 300
    assert short.questions == cloze.questions[: len(short.questions)]
    assert cloze_task(["Nada."], tokenizer, 20, 300) is None
    figures = score_signal(model, [cloze, *local_tasks(str(data_dir), tokenizer, 8)], 3)
    write_cloze(tmp_path / "cloze.jsonl", make_cloze(texts, 20))
    harness = HarnessModel(*loaded, 4)
    for name, key, metric in (("cloze", "cloze", "acc"), ("hellaswag", "hellaswag", "acc_norm"), ("arc_zero", "arc", "acc_norm"),
                              ("calame", "calame", "acc"), ("lambada", "lambada", "acc")):  # fmt: skip
        limit = 20 if name == "cloze" else 8
        outcome = run_task(harness, TASKS["ttl_" + name], str(data_dir), str(tmp_path / "cloze.jsonl"), limit)
        assert figures[f"{key}_{metric}"] == pytest.approx(outcome.values[metric])
        assert figures[f"{key}_bits_per_byte"] == pytest.approx(outcome.values["answer_bits_per_byte"], abs=1e-5)
    with pytest.raises(
        InputError, match=r"signal_data_dir=.*: holds no task of the suite signal\. .*holds no hellaswag_pt_val"
    ):
        local_tasks(str(tmp_path), tokenizer, 8)


def test_branches_of_a_repository_are_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import GitRefs, HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    names = ["main", "step200", "step100000", "try"]
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0" * 40} for name in names]
    refs = GitRefs(branches=[type("Ref", (), branch)() for branch in branches], converts=[], tags=[])
    monkeypatch.setattr(HfApi, "list_repo_refs", lambda self, repository: refs)
    stops = list_models("someone/model", None, checkpoints=True)
    assert [(stop.revision, stop.step) for stop in stops] == [("step200", 200), ("step100000", 100_000), (None, None)]

    def refuse(self: HfApi, repository: str) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(HfApi, "list_repo_refs", refuse)
    with pytest.raises(
        InputError, match=r"checkpoints: the branches of someone/model cannot be listed: OfflineModeIsEnabled"
    ):
        list_models("someone/model", None, checkpoints=True)


def test_real_data_has_the_rows_and_constants_that_are_known(real_data: Path) -> None:
    folder = str(real_data / "eval")
    counts = {"arc": 1170, "mmlu": 1473, "truthfulqa": 788, "enem": 147, "oab": 1892 - 15, "hatebr": 7000 - 25}
    shots = {"arc": 1118, "mmlu": 280, "truthfulqa": 0, "enem": 3, "oab": 3, "hatebr": 25}
    for name, count in counts.items():
        rows = load_rows(name, folder)
        assert (len(rows.test), len(rows.shots)) == (count, shots[name]), name
    exam = load_rows("enem", folder)
    assert [row["id"] for row in exam.shots] == ["2022_21", "2022_88", "2022_143"]
    assert all(len(row["choices"]) == 5 and row["answer"] in "ABCDE" for row in exam.test)
    lines = trivial_lines("labels", "f1_macro", load_rows("hatebr", folder).test)
    assert lines["always 'Sim'"][1] == pytest.approx(1 / 3, abs=2e-3)
    arc = trivial_lines("choices", "acc_norm", load_rows("arc", folder).test)
    assert 0.25 < arc["a guess"][1] < 0.251
    truth = trivial_lines("truth", "mc2", load_rows("truthfulqa", folder).test)
    assert 0.38 < truth["the same probability for each"][1] < 0.46


def test_a_hellaswag_row_may_lack_its_second_sentence() -> None:
    row = {"activity_label": "Cozinha", "ctx_a": "Ela corta.", "ctx_b": None, "endings": ["a", "b"], "label": 1}
    assert evaluation_rows.hellaswag(row)["question"].startswith("Cozinha: Ela corta.")


def byte_level_tokenizer(texts: list[str]) -> Any:
    """A tokenizer of another family, as GPT's, whose end token is typed `<|endoftext|>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="</s>", pad_token="</s>"
    )


@pytest.mark.parametrize("family", ["ours", "byte level"])
def test_texts_are_read_as_in_training(loaded: tuple[Any, Any], sample_texts: list[str], family: str) -> None:
    """Composed, and with typed special tokens as text; what the tokenizer itself puts in front stays."""
    model, tokenizer = loaded
    if family != "ours":
        tokenizer = byte_level_tokenizer(sample_texts[:60])
    wrapped = HarnessModel(model, tokenizer, 4)
    context, continuation = "Pergunta: coração </s> e\u0301 bom?\nResposta:", " na\u0303o </s>"
    plain = encode_texts(tokenizer, ["Pergunta: coração </s> é bom?\nResposta:", " não </s>"])
    start = tokenizer.encode("")
    assert wrapped.tok_encode(context) == [*start, *plain[0]]
    assert wrapped._encode_pair(context, continuation) == ([*start, *plain[0]], plain[1])
    assert encode_pair(tokenizer, context, continuation) == ([*start, *plain[0]], plain[1])
    ids, mask = wrapped.tok_batch_encode([context, "a"], left_truncate_len=20)
    assert ids[0].tolist() == [*start, *plain[0]][-20:]
    assert mask.sum(dim=1).tolist() == [20, len(wrapped.tok_encode("a"))]
    assert ids[1, -1].item() == wrapped.tok_encode("a")[-1], "padded on the left"
    assert tokenizer.eos_token_id not in [*plain[0], *plain[1]]


def test_bytes_of_an_answer_are_those_of_the_composed_text() -> None:
    assert choice_results({"choices": ["na\u0303o", "sim"], "gold": 0}, [(-1.0, True), (-2.0, False)])[
        "answer_bits_per_byte"
    ] == (-1.0, len(" não".encode()))
