"""lm-evaluation-harness on a simulator: its own command line, a local task, our own numbers."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import STORY, WORDS, Command, free_port, joins, make_command
from tokenizers.processors import TemplateProcessing

import tintc
from tintc.cli.lm_eval import with_device
from tintc.cli.texts import tokenise
from tintc.errors import InputError, OptionError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from tintc.evaluation.lm_eval_model import TintLM
from tintc.evaluation.processes import left

evaluate: Any = simple_evaluate
"""Without the signature of the loader in its place."""
SENTENCES = [" ".join(WORDS[(start + 5 * step) % len(WORDS)] for step in range(9)) for start in range(4)]
DOCUMENTS = [
    {"text": text, "choices": ["the cat", "a dog ran"], "right": index % 2} for index, text in enumerate(SENTENCES)
]


@pytest.fixture(scope="module")
def folder(llama_sim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("harness")
    sim = tintc.compile(llama_sim.parent / "model", inner_lr=0.02, max_length=24)
    sim.tokenizer.eos_token = "[UNK]"
    sim.save_pretrained(base / "sim")
    return base / "sim"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` caches goes to a folder of the tests'."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two local tasks over the same documents: multiple choice, and rolling perplexity."""
    base = tmp_path_factory.mktemp("tasks")
    (base / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(base / "documents.jsonl")}}}
    shared = data | {"test_split": "test", "metadata": {"version": 1}}
    choice = {"task": "local_choice", "output_type": "multiple_choice", "doc_to_text": "{{text}}"}
    choice |= {"doc_to_choice": "{{choices}}", "doc_to_target": "{{right}}", "metric_list": [{"metric": "acc"}]}
    rolling = {"task": "local_rolling", "output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{text}}", "metric_list": [{"metric": "word_perplexity"}]}
    for task in (choice, rolling):
        (base / f"{task['task']}.yaml").write_text(yaml.safe_dump(task | shared))
    return base


def ours(sim: Any, tokens: list[int], trained: int, start: int) -> float:
    """Log-likelihood of ``tokens[start:]``; those that are trained on before the update."""
    ids = torch.tensor([tokens[:-1]])
    with torch.no_grad():
        out = sim(ids, train_mask=torch.arange(ids.shape[1])[None] < trained, return_before=True)
    before, after = out.logits_before[0].log_softmax(-1), out.logits[0].log_softmax(-1)
    picked = [(before if at < trained else after)[at - 1, tokens[at]] for at in range(start, len(tokens))]
    return float(torch.stack(picked).sum())


def check(lm: TintLM, results: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """The harness's figures are ours to the last digit: every logged log-likelihood, accuracy, perplexity."""
    right, total, words = 0, 0.0, 0
    for sample in samples:
        document, logged = sample["doc"], [float(answer[0]) for answer in sample["filtered_resps"]]
        context = lm.tok_encode(document["text"])
        choices = [context + lm.tok_encode(choice) for choice in document["choices"]]
        wanted = [ours(lm.sim, tokens, len(context), len(context)) for tokens in choices]
        assert logged == wanted
        right += (wanted[0] < wanted[1]) == bool(document["right"])
        tokens = [lm.prefix_token_id, *context]
        total, words = total + ours(lm.sim, tokens, (len(tokens) - 1) // 2, 1), words + len(document["text"].split())
    assert len(samples) == 4 and results["local_choice"]["acc,none"] == right / 4
    assert results["local_rolling"]["word_perplexity,none"] == pytest.approx(math.exp(-total / words), rel=1e-12)


def test_a_local_task_gives_our_numbers(folder: Path, tasks: Path, offline: None) -> None:
    """Through the harness itself, which takes a simulator that is loaded."""
    manager, lm = TaskManager(include_path=str(tasks), include_defaults=False), TintLM(tintc.load(folder))
    names: Any = ["local_choice", "local_rolling"]
    found: Any = evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0)
    check(lm, found["results"], found["samples"]["local_choice"])


@pytest.mark.slow
def test_the_command_gives_our_numbers(
    folder: Path,
    tasks: Path,
    tmp_path: Path,
    offline: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Through `tintc lm-eval`, which also reads the harness's own tasks (half a minute)."""
    command: Command = make_command(monkeypatch, capfd)
    arguments = ("--model", "tint", "--model_args", f"pretrained={folder},train_fraction=0.5", "--include_path", tasks)
    wanted = ("--tasks", "local_choice,local_rolling", "--output_path", tmp_path / "out", "--log_samples")
    found = command("lm-eval", *arguments, *wanted)
    assert found.code == 0 and "local_choice" in found.out, found.err
    (results,), (samples,) = ([*(tmp_path / "out").rglob(name)] for name in ("results*", "samples_local_choice*"))
    lines = samples.read_text().splitlines()
    check(TintLM(str(folder)), json.loads(results.read_text())["results"], [json.loads(line) for line in lines])


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]  # pyright: ignore[reportArgumentType]


def test_batches_of_unequal_texts(folder: Path) -> None:
    """Batches give what single texts give, to 1e-5; answers come in the order of the requests."""
    asked = [("the cat", " sat on"), (STORY[:40], " a"), (STORY[:40], " the"), ("", "the cat"), ("dog", " ran saw on")]
    one, many = TintLM(folder), TintLM(folder, batch_size=3)
    found = one.loglikelihood(requests("loglikelihood", *asked), disable_tqdm=True)
    together = many.loglikelihood(requests("loglikelihood", *asked), disable_tqdm=True)
    assert [answer[0] for answer in together] == pytest.approx([answer[0] for answer in found], rel=1e-5)
    assert [answer[1] for answer in together] == [answer[1] for answer in found]
    for (context, continuation), answer in zip(asked, found, strict=True):
        tokens = one.tok_encode(context) if context else [one.prefix_token_id]
        whole = tokens + one.tok_encode(continuation)
        assert answer[0] == pytest.approx(ours(one.sim, whole, len(tokens), len(tokens)), rel=1e-6)


def test_the_update_is_what_the_context_gives(folder: Path) -> None:
    """A context of one token trains nothing; a longer one does; a rate of zero is the auxiliary."""
    asked = requests("loglikelihood", ("cat", " sat on"), ("cat dog ran", " sat on"))
    plain, trained = TintLM(folder, inner_lr=0), TintLM(folder)
    still, moved = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (plain, trained))
    assert still[0][0] == pytest.approx(moved[0][0], rel=1e-6)
    assert still[1][0] != pytest.approx(moved[1][0], rel=1e-6)


def test_long_texts(folder: Path) -> None:
    """Contexts are cut on the left; rolling windows score every token once; a continuation must fit."""
    lm = TintLM(folder, max_length=12, train_fraction=0.25)
    tokens = lm.tok_encode(STORY)
    assert len(tokens) == 40
    context, continuation = " ".join(STORY.split()[:30]), " " + " ".join(STORY.split()[30:33])
    (found,) = lm.loglikelihood(requests("loglikelihood", (context, continuation)), disable_tqdm=True)
    assert found[0] == pytest.approx(ours(lm.sim, tokens[20:33], 10, 10), rel=1e-6)
    windows = [*lm._windows(STORY)]
    assert sum(len(window.tokens) - window.start for window in windows) == 40
    assert [window.trained for window in windows] == [3, 3, 3, 3]
    (total,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (STORY,)), disable_tqdm=True)
    assert total == pytest.approx(sum(ours(lm.sim, list(w.tokens), w.trained, w.start) for w in windows), rel=1e-6)
    with pytest.raises(InputError, match="A continuation has 40 tokens"):
        lm.loglikelihood(requests("loglikelihood", ("cat", " " + STORY)), disable_tqdm=True)


def test_generation(folder: Path) -> None:
    """Greedy, trained on the whole context, cut before the first string that stops it."""
    lm, context = TintLM(folder), "the cat sat on a mat and then"
    ids = torch.tensor([lm.tok_encode(context)])
    found = lm.sim.generate(ids, train_mask=torch.ones_like(ids), max_new_tokens=6)[0, ids.shape[1] :]
    words = lm.tokenizer.decode(found).split()
    asked = [(context, {"until": [], "max_gen_toks": 6}), (context, {"until": [words[3]], "max_gen_toks": 6})]
    whole, cut = lm.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    assert whole.split() == words and len(words) == 6
    assert cut.split() == words[: words.index(words[3])]
    with pytest.raises(InputError, match="23 new tokens leave no room"):
        lm.generate_until(requests("generate_until", (context, {"max_gen_toks": 23})), disable_tqdm=True)


def test_texts_begin_as_the_tokenizer_begins_them(folder: Path) -> None:
    """With its first token, unless that is there or not wanted; the commands do the same."""
    lm = TintLM(folder)
    the, cat = lm.tok_encode("the cat")
    assert lm.tok_encode("cat") == [cat]
    lm.tokenizer._tokenizer.post_processor = TemplateProcessing(single="the $A", special_tokens=[("the", the)])
    lm.tokenizer.bos_token = "the"
    assert lm.tok_encode("cat") == lm.tok_encode("the cat") == [the, cat] == tokenise("", lm.tokenizer, "cat").tolist()
    lm.add_bos_token = True
    assert lm.tok_encode("cat") == lm.tok_encode("the cat") == [the, cat], "never two of them"
    lm.add_bos_token = False
    assert lm.tok_encode("cat") == [cat]


def test_generation_in_batches(folder: Path) -> None:
    """Contexts of unequal lengths, some too short to be trained on, give what each gives alone, in their order."""
    texts, ways = ["the cat sat", "", STORY[:40], "dog", STORY[:30]], ({"max_gen_toks": 6}, {"max_gen_toks": 2})
    asked = requests("generate_until", *((text, how) for text in texts for how in ways))
    alone, together = (TintLM(folder, batch_size=size, inner_lr=0.5) for size in (1, 3))
    wanted = alone.generate_until(asked, disable_tqdm=True)
    assert together.generate_until(asked, disable_tqdm=True) == wanted
    assert all(short and long.startswith(short) for long, short in zip(wanted[::2], wanted[1::2], strict=True))
    assert len({*wanted}) > 3


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_generation_after_next_to_nothing(folder: Path, executor: str) -> None:
    """A context of no token, or of one, is answered by the weights as they are, whatever the rate."""
    lm, found = TintLM(folder, executor=executor, inner_lr=5), []
    asked = requests("generate_until", ("", {"max_gen_toks": 2}), ("cat", {"max_gen_toks": 2}))
    answers = lm.generate_until(asked, disable_tqdm=True)
    (cat,), prefix = lm.tok_encode("cat"), lm.prefix_token_id
    for tokens in ([prefix, prefix], [prefix, cat]):
        for _ in range(2):
            ids = torch.tensor([tokens])
            tokens.append(int(lm.sim(ids, train_mask=torch.zeros_like(ids)).logits[0, -1].argmax()))
        found.append(lm.tokenizer.decode(tokens[2:], skip_special_tokens=True))
    assert [answer.split() for answer in answers] == [text.split() for text in found] and all(found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_fraction": 1}, "less than 1"),
        ({"train_fraction": "half"}, "less than 1"),
        ({"inner_lr": "abc"}, "learning rate is abc; it must be a finite number"),
        ({"inner_lr": "nan"}, "learning rate is nan; it must be a finite number"),
        ({"inner_lr": -0.1}, "rate is -0.1; .* zero or more"),
        ({"max_length": "abc"}, "max length is abc; .* at least 2"),
        ({"max_length": -3}, "max length is -3; .* at least 2"),
        ({"max_length": 1}, "max length is 1; .* at least 2"),
        ({"max_length": 12.5}, "max length is 12.5; .* at least 2"),
        ({"batch_size": 0}, "at least 1"),
        ({"learning_rate": 1}, "'learning_rate' is unknown to tint"),
        ({"pretrained": None}, "pretrained=OUT"),
    ],
)
def test_options_out_of_range(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        arguments: dict[str, Any] = {"pretrained": folder} | options
        TintLM(**arguments)


def _one_of_two(index: int, folder: Path, tasks: Path, out: Path, port: int) -> None:
    joins(index, port)
    manager, lm = TaskManager(include_path=str(tasks), include_defaults=False), TintLM(str(folder))
    names: Any = ["local_choice", "local_rolling"]
    found: Any = evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0)
    left()
    shown = None if found is None else {"results": found["results"], "samples": found["samples"]["local_choice"]}
    (out / str(index)).write_text(json.dumps(shown, default=str))


def test_two_processes(folder: Path, tasks: Path, tmp_path: Path, offline: None) -> None:
    """Each has half of the documents; the first one has the numbers of all."""
    arguments = (folder, tasks, tmp_path, free_port())
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")  # pyright: ignore
    found, other = (json.loads((tmp_path / name).read_text()) for name in ("0", "1"))
    check(TintLM(str(folder)), found["results"], found["samples"])
    assert other is None


@pytest.mark.slow
def test_what_the_harness_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Its own words about its arguments, in one sentence."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of handlers whose stream another test has closed
    command = make_command(monkeypatch, capfd)
    found = command("lm-eval", "--model", "tint", "--model_args", f"pretrained={folder}")
    assert found.code == 2 and "Traceback" not in found.err and "lm-evaluation-harness says: " in found.err


@pytest.mark.parametrize(
    ("given", "gpu", "wanted"),
    [
        ("--model tint", False, "--device cpu --model tint"),
        ("run --model tint", False, "run --device cpu --model tint"),
        ("--model tint", True, "--model tint"),
        ("--model tint --device=mps", False, "--model tint --device=mps"),
        ("run --config a.yaml", False, "run --config a.yaml"),
        ("ls tasks", False, "ls tasks"),
        ("--help", False, "--help"),
        ("", False, ""),
    ],
)
def test_the_device_is_one_there_is(given: str, gpu: bool, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval's own default is cuda:0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert with_device(given.split()) == wanted.split()


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    found = make_command(monkeypatch, capfd)("lm-eval", "--model", "tint")
    assert found.code == 2 and "pip install lm_eval" in found.err and len(found.err.splitlines()) == 1
