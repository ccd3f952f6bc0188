import json

import pytest

from lm.errors import UserError
from lm.export.model_card import model_card
from lm.model.transformer import TransformerLM


def test_the_card_describes_the_model_its_data_and_its_metrics(small, tmp_path):
    facts = {"bytes": 12345, "documents": 67}
    manifest = {
        "source": "files",
        "splits": {"train": {**facts, "shards": [{**facts, "sha256": ""}]}},
        "provenance": [
            {"url": "https://name:secret@example.org:81/stories.txt?signature=secret"},
            {"path": "/private/stories.txt"},
        ],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "train.json").write_text('{"val_loss": 1.2345678, "step": 2500, "val_perplexity": null}')
    card = model_card("my-model", TransformerLM(small, 100), tmp_path, tmp_path / "train.json")
    for part in (
        "# my-model\n",
        "with 23,968 parameters, in the layout of Llama",  # 2 (4 32² + 3 32 48) + 5 32 + 2 100 32
        'AutoModelForCausalLM.from_pretrained("my-model")',
        "max_new_tokens=8,",
        "| num_layers | 2 |",
        "- train: 67 documents, 12,345 bytes",
        "- <https://example.org:81/stories.txt>",
        "| val_loss | 1.2346 |",
        "| step | 2500 |",
        "| val_perplexity | unknown |",
    ):
        assert part in card
    assert "secret" not in card and "private" not in card


def test_the_name_of_any_folder_stays_one_word_of_the_example(small):
    card = model_card('a "b"\n# c', TransformerLM(small, 100), None, None)
    assert '# a \\"b\\"\\n# c\n' in card and 'from_pretrained("a \\"b\\"\\n# c")' in card


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('{"val_loss": [1]}', "val_loss: expected a number or a word, got [1]"),
        ('{"val_loss": NaN}', "val_loss: expected a number, got nan"),
        ('{"a|b\\n": 1}', "a|b\\n: expected a number or a word, got 1"),
        ('{"val_loss": "low\\n# high"}', "val_loss: expected a number or a word, got 'low\\n# high'"),
    ],
)
def test_metrics_that_do_not_fit_into_a_table_are_refused(small, tmp_path, metrics, message):
    (tmp_path / "train.json").write_text(metrics)
    with pytest.raises(UserError) as error:
        model_card("my-model", TransformerLM(small, 100), None, tmp_path / "train.json")
    assert f"train.json: {message}; leave it out" in str(error.value)


DAMAGED = [
    None,
    "{",
    "[]",
    "{}",
    '{"source": 1, "splits": [], "provenance": []}',
    '{"source": "files", "splits": {"train": {"documents": "many", "bytes": 1}}, "provenance": []}',
    '{"source": "files", "splits": {}, "provenance": [{"url": "http://[::1/x"}]}',
    '{"source": "files", "splits": {}, "provenance": [7]}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_manifest_is_refused(small, tmp_path, text):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json:"):
        model_card("my-model", TransformerLM(small, 100), tmp_path, None)
