import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from lm.corpus.stories import stories
from lm.errors import UserError
from lm.evaluation.documents import predict, split_documents
from lm.evaluation.kinds import KINDS, read_stories
from lm.model.transformer import TransformerLM
from lm.training import evaluation
from lm.training.evaluation import DOCUMENT_LOSSES, DocumentLosses, greedy_continuation, mean_loss, windows


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 23, 24, 25])
def test_windows_cover_every_token_as_a_target_once_in_order(count):
    tokens = np.arange(100, 100 + count, dtype=np.uint16)
    pairs = list(windows(tokens, first_input=7, length=4, batch_size=3))
    assert torch.cat([targets.flatten() for _, targets in pairs]).tolist() == tokens.tolist()
    assert torch.cat([inputs.flatten() for inputs, _ in pairs]).tolist() == [7, *tokens[:-1].tolist()]
    assert all(inputs.shape == targets.shape and inputs.shape[0] <= 3 for inputs, targets in pairs)


def test_mean_loss_is_the_mean_over_single_windows(small, data, tokenizer):
    torch.manual_seed(0)
    model = TransformerLM(small, tokenizer.vocab_size).eval()
    ids = torch.tensor([tokenizer.end_of_text_id, *data.val.tolist()])
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(data.val), 16):
            window = ids[start : start + 17]
            log_probabilities = model(window[:-1]).log_softmax(-1)
            nats -= log_probabilities[torch.arange(len(window) - 1), window[1:]].double().sum().item()
    ours = mean_loss(model, data.val, tokenizer.end_of_text_id, 5, torch.device("cpu"), "float32")
    assert ours == pytest.approx(nats / len(data.val), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_with_a_document_mask_the_mean_is_that_over_single_documents(small, tokenizer, batch_size):
    torch.manual_seed(0)
    model = TransformerLM(replace(small, context_length=64), tokenizer.vocab_size).eval()
    end_of_text = [tokenizer.end_of_text_id]
    documents = [[*text, *end_of_text] for text in (b"Once upon", b"a", b"", b"time there was")]
    nats = 0.0
    for document in documents:
        ids = torch.tensor(end_of_text + document)
        with torch.no_grad():
            log_probabilities = model(ids[:-1]).log_softmax(-1)
        nats -= log_probabilities[torch.arange(len(document)), ids[1:]].double().sum().item()
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    given = (model, tokens, tokenizer.end_of_text_id, batch_size, torch.device("cpu"), "float32")
    assert mean_loss(*given, document_mask=True) == pytest.approx(nats / len(tokens), rel=1e-6)
    assert mean_loss(*given) != pytest.approx(nats / len(tokens), rel=1e-3)


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary_size(small, data, tokenizer):
    model = TransformerLM(small, tokenizer.vocab_size)
    model.lm_head.weight.data.zero_()
    loss = mean_loss(model, data.val, tokenizer.end_of_text_id, 8, torch.device("cpu"), "float32")
    assert loss == pytest.approx(math.log(tokenizer.vocab_size))


def test_the_continuation_is_greedy_and_stops_at_the_end_of_text(tokenizer, small):
    class Counting(torch.nn.Module):
        """After every byte comes the next byte; after 'e' the end of text, and after that 'a'."""

        config = small

        def forward(self, ids):
            following = torch.where(ids == ord("e"), tokenizer.end_of_text_id, ids + 1)
            following = torch.where(ids == tokenizer.end_of_text_id, ord("a"), following)
            return torch.nn.functional.one_hot(following, tokenizer.vocab_size).float()

    assert greedy_continuation(Counting(), tokenizer, "xyza", torch.device("cpu")) == "bcde"
    assert greedy_continuation(Counting(), tokenizer, "", torch.device("cpu")) == "abcde"  # after the end of text
    assert greedy_continuation(Counting(), tokenizer, "x" * 40 + "ab", torch.device("cpu")) == "cde"


END = 256


@pytest.fixture
def story_data(data, tokenizer):
    told = list(islice(stories(7), 3))
    ids = np.array([i for story in told for i in (*story.text.encode(), tokenizer.end_of_text_id)], dtype=np.uint16)
    size = sum(len(story.text) for story in told)
    return replace(data, val=ids, val_text_bytes=size, val_entropy_bits=sum(story.bits for story in told))


@pytest.fixture
def untrained(small, tokenizer):
    torch.manual_seed(0)
    return TransformerLM(small, tokenizer.vocab_size).eval()


def test_document_losses_are_those_of_the_stage_evaluate(untrained, story_data, tokenizer):
    losses = DocumentLosses(story_data, tokenizer)(untrained)
    documents = split_documents(story_data.val, tokenizer.end_of_text_id)
    predictions = predict(untrained, documents, tokenizer.end_of_text_id)
    nats = np.concatenate([prediction.nats for prediction in predictions])
    assert losses["document_bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / story_data.val_text_bytes)
    kinds = np.concatenate([story.tokens.kinds for story in read_stories(documents, tokenizer)])
    for name in ("later_name", "later_other", "wording"):
        assert losses[f"{name}_nats"] == pytest.approx(nats[kinds == KINDS.index(name)].mean())
    assert tuple(losses) == DOCUMENT_LOSSES and None not in losses.values()


def test_the_losses_of_beginnings_are_those_of_shorter_documents(untrained, story_data, tokenizer):
    documents = split_documents(story_data.val, tokenizer.end_of_text_id)
    nats = np.concatenate([p.nats[:40] for p in predict(untrained, [ids[:40] for ids in documents], END)])
    losses = DocumentLosses(story_data, tokenizer)(untrained, max_length=40)
    assert losses["document_bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / 120)
    kinds = np.concatenate([story.tokens.kinds[:40] for story in read_stories(documents, tokenizer)])
    assert losses["wording_nats"] == pytest.approx(nats[kinds == KINDS.index("wording")].mean())


def test_only_whole_documents_of_a_long_split_are_read(untrained, story_data, tokenizer, monkeypatch):
    first = int(np.flatnonzero(story_data.val == tokenizer.end_of_text_id)[0]) + 1
    monkeypatch.setattr(evaluation, "MAX_DOCUMENT_TOKENS", first + 10)
    (nats,) = (p.nats for p in predict(untrained, [story_data.val[:first]], tokenizer.end_of_text_id))
    losses = DocumentLosses(story_data, tokenizer)(untrained)
    assert losses["document_bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / (first - 1))


def test_text_without_a_grammar_has_the_losses_of_pairs_only(untrained, data, tokenizer):
    losses = DocumentLosses(data, tokenizer)(untrained)
    assert losses["later_name_nats"] is None and losses["wording_nats"] is None
    assert losses["repeated_pair_nats"] > 0 and losses["new_pair_nats"] > 0
    with torch.no_grad():
        untrained.lm_head.weight.fill_(math.nan)
    assert set(DocumentLosses(data, tokenizer)(untrained).values()) == {None}


def test_text_that_is_not_the_built_in_stories_but_has_an_entropy_is_refused(data, tokenizer):
    with pytest.raises(UserError, match="val document 1: not a story of the built-in grammar"):
        DocumentLosses(replace(data, val_entropy_bits=5.0), tokenizer)
