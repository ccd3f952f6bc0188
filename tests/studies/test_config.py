import dataclasses

import pytest

from lm.config import Params


@pytest.mark.parametrize("name", ["-x", "_x", "", "a.b", "a\n", "ä", "a" * 101])
def test_a_variant_has_a_name_that_can_be_an_argument_and_a_file_name(params: Params, name):
    with pytest.raises(
        ValueError, match="^variants: expected names of at most 100 letters, digits, .*, got '"
    ) as error:
        dataclasses.replace(params.ablate, variants={**params.ablate.variants, name: params.ablate.switches})
    assert len(str(error.value)) < 200


def test_names_of_variants_may_begin_with_a_digit_and_have_100_characters(params: Params):
    names = ["4x_lr-2", "a" * 100]
    ablate = dataclasses.replace(params.ablate, run=names, variants=dict.fromkeys(names, params.ablate.switches))
    assert ablate.run == names
