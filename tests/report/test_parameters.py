import pytest

from lm.presets.preset import preset_names, preset_values
from lm.report.parameters import closest_preset, differing, flatten, shown
from lm.yaml12 import read_yaml


@pytest.fixture
def parameters(project):
    return flatten(read_yaml(project / "params.yaml"))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_the_closest_to_itself(parameters, name):
    closest, values = closest_preset(parameters | flatten(preset_values(name)))
    assert closest == name
    assert values["model.d_model"] == preset_values(name)["model"]["d_model"]


def test_what_differs_from_the_preset(parameters):
    changed = parameters | {"model.d_model": 96, "optim.max_learning_rate": 1e-2, "model.norm": "none"}
    name, values = closest_preset(changed)
    assert name == "laptop"
    assert differing(changed, values) == ["model.d_model"]  # 1e-2 is 0.01, and no preset sets model.norm


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("model.norm", "rmsnorm", "rmsnorm"),
        ("model.canon", False, "false"),
        ("ablate.seeds", [1, 2], "1, 2"),
        ("data.train_files", [], "none"),
        ("data.train_files", ["/srv/a.txt", "https://ada.example/b.txt"], "(not shown), (not shown)"),
        ("train.initial_model", "none", "none"),
        ("train.initial_model", "../ada/model", "(not shown)"),
        ("runtime.cluster", "auto", "auto"),
        ("runtime.cluster", "ada-laptop:6379", "(not shown)"),
        ("new.path", "/srv/x", "(not shown)"),
        ("new.path", r"C:\Users\ada", "(not shown)"),
        ("new.path", "~ada/x", "(not shown)"),
    ],
)
def test_values_that_may_name_a_person_or_a_machine_are_not_shown(name, value, text):
    assert shown(name, value) == text
