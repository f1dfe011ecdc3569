from dataclasses import replace
from typing import Any

import pytest

from data.errors import InputError
from pipelines.config import Recipe, Runtime
from pipelines.retrain import RetrainConfig

RECIPE = Recipe(seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 16}, r"num_workers is 16; at most recipe.finetune.num_lanes = 8 can share"),
        ({"checkpointed_stages": (9,)}, r"checkpointed_stages has 9; coatnet_0 has stages 0 to 3"),
    ],
)
def test_a_runtime_that_does_not_fit_is_refused_before_the_append(
    options: dict[str, Any], message: str
) -> None:
    """It was found by the training, after the new images had been appended for good."""
    good = RetrainConfig(incoming="/photos", once=True, recipe=RECIPE)
    with pytest.raises(InputError, match=message):
        replace(good, runtime=Runtime(**options))
