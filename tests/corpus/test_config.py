import dataclasses
import re

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st


def change(params, **values):
    return dataclasses.replace(params.data, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repository": "../x"}, "repository: expected OWNER/NAME, got '../x'"),
        ({"repository": ""}, "repository: expected OWNER/NAME, got ''"),
        ({"repository": "x" * 5000}, f"repository: expected OWNER/NAME, got '{'x' * 36} [...] {'x' * 35}'"),
        ({"revision": " "}, "revision: expected a branch, tag or commit, got ' '"),
        ({"train_files": [""]}, "train_files[0]: expected a path, glob or http(s) URL, got ''"),
        ({"val_files": ["a.txt", " \n"]}, r"val_files[1]: expected a path, glob or http(s) URL, got ' \n'"),
        (
            {"train_files": ["a\0b"]},
            "train_files[0]: expected a path, glob or http(s) URL, got a text with a null byte",
        ),
        ({"train_bytes": 10**30}, f"train_bytes: expected 0 to {10**15}, got {10**30}"),
        ({"train_documents": 10**4000}, f"train_documents: expected 0 to {10**15}, got 1000"),
        ({"val_bytes": -1}, f"val_bytes: expected 0 to {10**15}, got -1"),
        ({"seed": 10**4000}, "seed: expected 0 to 4294967295, got 1000"),
        ({"source": "files", "train_files": ["a"], "separator": "\ufeff"}, "separator: expected the text between two"),
    ],
)
def test_values_out_of_range(params, values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        change(params, **values)
    assert len(str(caught.value)) < 200


@given(st.from_regex(r"[\w./-]{0,9}", fullmatch=True) | st.sampled_from(["a" * 96, "a" * 97, "a.git", "é/a", "a/b\n"]))
def test_the_names_of_repositories_are_those_of_the_hub(params, name):
    try:
        validate_repo_id(name)
    except HFValidationError:
        with pytest.raises(ValueError, match=r"^repository: expected OWNER/NAME"):
            change(params, repository=name)
    else:
        assert change(params, repository=name).repository == name
