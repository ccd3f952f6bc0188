import dataclasses
import math

import numpy as np
import pytest
import torch

from lm.model.transformer import TransformerLM
from lm.training.evaluation import greedy_continuation, mean_loss, windows


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
    model = TransformerLM(dataclasses.replace(small, context_length=64), tokenizer.vocab_size).eval()
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
