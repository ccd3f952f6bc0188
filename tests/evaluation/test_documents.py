import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.evaluation import documents
from lm.evaluation.documents import overlapping_windows, predict, split_documents, text_bytes
from lm.model.transformer import TransformerLM


def test_documents_end_with_their_separator():
    tokens = np.array([5, 6, 0, 7, 0, 0, 8])
    assert [document.tolist() for document in split_documents(tokens, 0)] == [[5, 6, 0], [7, 0], [0], [8]]


def test_windows_by_hand():
    assert list(overlapping_windows(10, 4)) == [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    assert list(overlapping_windows(4, 4)) == [(0, 4, 0)]
    assert list(overlapping_windows(5, 4)) == [(0, 4, 0), (2, 5, 4)]


@given(length=st.integers(0, 200), context_length=st.integers(1, 40))
def test_every_token_is_counted_once_and_sees_at_least_half_a_window(length, context_length):
    counted = []
    for start, stop, first in overlapping_windows(length, context_length):
        assert 0 < stop - start <= context_length and start <= first < stop
        assert start == 0 or first - start >= context_length - max(1, context_length // 2)
        counted += range(first, stop)
    assert counted == list(range(length))


@pytest.mark.parametrize("max_logits", [1, 40 * 64, 1 << 24])
def test_predictions_are_those_of_each_document_alone(small, max_logits, monkeypatch):
    monkeypatch.setattr(documents, "_MAX_LOGITS", max_logits)
    torch.manual_seed(0)
    model = TransformerLM(small, vocab_size=64).eval()
    generator = np.random.default_rng(0)
    length = small.context_length
    ids = [generator.integers(1, 64, size=size) for size in (3, length, 1, length + 1, 3 * length)]
    for document, prediction in zip(ids, predict(model, ids, end_of_text_id=0)):
        nats, top, is_right = [], [], []
        # The same windows, one at a time and with PyTorch's softmax.
        for position in range(len(document)):
            half = length // 2
            start = 0 if position < length else (position - length) // half * half + half
            context = np.concatenate(([0], document))[start : position + 1]
            with torch.no_grad():
                probabilities = model(torch.from_numpy(context))[-1].softmax(-1)
            nats.append(-probabilities[document[position]].log().item())
            top.append(probabilities.max().item())
            is_right.append(probabilities.argmax().item() == document[position])
        assert prediction.nats == pytest.approx(nats, abs=1e-4)
        assert prediction.top_probability == pytest.approx(top, abs=1e-4)
        assert prediction.top_is_right.tolist() == is_right


def test_the_bytes_of_a_document_do_not_include_its_end(tokenizer):
    documents = split_documents(tokenizer.encode_array("é a<|endoftext|><|endoftext|>b"), tokenizer.end_of_text_id)
    assert text_bytes(documents, tokenizer).tolist() == [4, 0, 1]
