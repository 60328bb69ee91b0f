"""Few-shot prompts from texts and labels: every token is where its text is, whatever the tokenizer merges."""

from __future__ import annotations

from typing import Any, Literal

import command
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import llama_like, simulator
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tintc import masks
from tintc.errors import InputError, OptionError

STORIES = command.ROOT.parent / "shared" / "models" / "stories260K"
FORMATS: tuple[Literal["single", "multi"], ...] = ("single", "multi")
DEMONSTRATIONS = [("a fine film. It was", " good"), ("dull, dull. It was", " bad"), ("it was so-so. It was", " bad")]
QUERY = "a joy. It was"
MERGED = "It was great. It was good. It was bad. a b c d"


def byte_level(merges_phrases: bool) -> PreTrainedTokenizerFast:
    """A BPE that has merged words, or without boundaries between them whole phrases; BOS in front, EOS behind."""
    base = Tokenizer(BPE())
    base.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=not merges_phrases)
    base.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    base.train_from_iterator([MERGED] * 9, trainer)
    base.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")


TOKENIZERS: dict[str, Any] = {"words": byte_level(False)}
MERGING = byte_level(True)
if STORIES.exists():
    TOKENIZERS["llama"] = AutoTokenizer.from_pretrained(STORIES)


def text_of(tokenizer: Any, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("format", FORMATS)
def test_targets_and_openings(name: str, format: Literal["single", "multi"]) -> None:
    tokenizer = TOKENIZERS[name]
    found, full = (
        masks.few_shot(tokenizer, DEMONSTRATIONS, QUERY, format=format, loss=loss) for loss in ("label", "full")
    )
    ids, bos = found.input_ids[0], tokenizer.bos_token_id
    assert text_of(tokenizer, ids[found.loss_mask[0]]).split() == ["good", "bad", "bad"]
    assert torch.equal(full.train_mask, found.train_mask) and torch.equal(full.input_ids, found.input_ids)
    wanted = full.train_mask & (full.input_ids != bos)
    assert torch.equal(full.loss_mask, wanted), "all but the openings"
    query = ids[~found.train_mask[0]]
    if format == "single":
        assert int((ids == bos).sum()) == 4 and int(query[0]) == bos
        starts = (ids == bos).nonzero()[:, 0].tolist()
        assert found.position_ids[0][starts].tolist() == [0] * 4
        pieces = [text + label for text, label in DEMONSTRATIONS] + [QUERY]
        for start, end, piece in zip(starts, [*starts[1:], len(ids)], pieces, strict=True):
            assert ids[start:end].tolist() == [bos, *tokenizer(piece, add_special_tokens=False).input_ids]
    else:
        assert int((ids == bos).sum()) == 1 and set(found) == {"input_ids", "train_mask", "loss_mask"}
        whole = "\n\n".join([*(text + label for text, label in DEMONSTRATIONS), QUERY])
        assert ids.tolist() == [bos, *tokenizer(whole, add_special_tokens=False).input_ids]
        assert text_of(tokenizer, query).strip() == QUERY


def test_a_token_across_the_border_is_the_labels() -> None:
    """Here the tokenizer has one token for the end of the text and the label."""
    tokenizer = MERGING
    across = tokenizer("It was great", add_special_tokens=False).input_ids
    alone = tokenizer("It was", add_special_tokens=False).input_ids
    assert across[: len(alone)] != alone, "else this tests nothing"
    found = masks.few_shot(tokenizer, [("It was", " great")], "It was")
    targets = found.input_ids[0][found.loss_mask[0]]
    assert text_of(tokenizer, targets).endswith("great") and len(targets) > 0


WORDS = st.text(st.sampled_from("ab It was.\n"), min_size=1, max_size=9)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), WORDS, st.sampled_from(FORMATS), st.booleans())
def test_no_token_is_lost(pairs: list[tuple[str, str]], query: str, format: Any, full: bool) -> None:
    """Any text, spaces at either side included: the tokens are those of the text, labels among the targets."""
    tokenizer = MERGING
    try:
        found = masks.few_shot(tokenizer, pairs, query, format=format, loss="full" if full else "label", separator="\n")
    except InputError as error:
        assert "no tokens" in str(error) or "without tokens" in str(error)
        return
    rows = [text + label for text, label in pairs] + [query]
    wanted = "".join(rows) if format == "single" else "\n".join(rows)
    assert tokenizer.decode(found.input_ids[0], skip_special_tokens=True) == wanted
    assert not (found.loss_mask & ~found.train_mask).any()
    assert int(found.loss_mask.sum()) >= len(pairs)


@pytest.mark.parametrize("format", FORMATS)
def test_a_simulator_takes_them(format: Literal["single", "multi"]) -> None:
    """Both executors, to 1e-9 of the update in fp64; only labels are learnt."""
    sim = simulator(*llama_like(layers=1, vocab=300), max_length=128, inner_lr=0.02)
    found = masks.few_shot(MERGING, DEMONSTRATIONS[:2], QUERY, format=format)
    outs = []
    for executor in ("fused", "literal"):
        sim.executor = executor
        with torch.no_grad():
            outs.append(sim(**found, return_before=True))
    fused, literal = outs
    update = float((literal.logits - literal.logits_before).norm())
    assert update > 0 and float((fused.logits - literal.logits).norm()) < 1e-9 * update


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"demonstrations": []}, "There are no demonstrations"),
        ({"demonstrations": [("", " good")]}, "Demonstration 1 has no tokens"),
        ({"demonstrations": [*DEMONSTRATIONS, ("it was", "")]}, "Demonstration 4 has a label without tokens"),
        ({"query": ""}, "The query has no tokens"),
        ({"format": "both"}, "The format is 'both'; choose one of single, multi"),
        ({"loss": "labels"}, "The loss is 'labels'; choose one of label, full"),
    ],
)
def test_what_is_no_prompt(change: dict[str, Any], says: str) -> None:
    given_ones: dict[str, Any] = {"demonstrations": DEMONSTRATIONS, "query": QUERY} | change
    for format in FORMATS:
        with pytest.raises((InputError, OptionError), match=says):
            arguments: dict[str, Any] = {"format": format} | given_ones
            masks.few_shot(MERGING, **arguments)


@pytest.mark.parametrize("demonstrations", [["a", "b"], [("a film", 1)], [("a", "b", "c")]])
def test_what_is_no_demonstration(demonstrations: Any) -> None:
    with pytest.raises(InputError, match="pass a pair of strings"):
        masks.few_shot(command.tokenizer(), demonstrations, "q")


def test_no_tokenizer() -> None:
    with pytest.raises(InputError, match="There is no tokenizer"):
        masks.few_shot(None, [("a cat", " sat")], "q")
