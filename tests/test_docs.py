"""Two lists that must agree: what README.md and docs/*.md name, and what exists.

The tests read code spans, code blocks and links. They check paths, parameters and their values, commands with their
flags, stages, Make targets, and links between pages.
"""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from ruamel.yaml import YAML

from lm.cli.main import make_parser
from lm.config import Params, StudyParams
from lm.planning.devices import DEVICES

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    *sorted(
        path.relative_to(PROJECT).as_posix() for part in ("docs", "studies/*") for path in PROJECT.glob(f"{part}/*.md")
    ),
]
DVC_YAML = (PROJECT / "dvc.yaml").read_text(encoding="utf-8")
STAGES = YAML(typ="safe").load(DVC_YAML)["stages"]
SECTIONS = {**get_type_hints(StudyParams), **get_type_hints(Params)}

FOLDERS = ("lm", "stages", "tests", "docs", "bench", "studies", "metrics", "data", ".dvc")
ROOT_FILE = re.compile(r"[\w.-]+\.(md|yaml|toml|cff|lock)|Makefile|LICENSE|requirements\.txt|constraints\.txt")
NOT_IN_GIT = {".dvc/config.local", "uv.lock"}
PLACEHOLDERS = {"FOLDER", "MODULE", "NAME", "studies/mine"}

# What a reader of docs/change-something.md adds to the project.
NEW_PATHS = {"stages/common_tokens.py", "metrics/common_tokens.json"}
NEW_PARAMETERS = {"model.attention", "optim.decay_norms"}
NEW_VALUES = {("model.ffn", "gelu"), ("runtime.attention_backend", "blockwise")}


def read(page: str) -> str:
    return (PROJECT / page).read_text(encoding="utf-8")


def code_blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(page), flags=re.MULTILINE | re.DOTALL)


def without_blocks(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_blocks(page))


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in the shell blocks."""
    for language, text in code_blocks(page):
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                command: list[str] = []
                for word in [*shlex.split(line, comments=True), "&&"]:
                    if word != "&&":
                        command.append(word)
                    elif command:
                        yield command[2:] if command[:2] == ["uv", "run"] else command
                        command = []


def span_commands(page: str) -> list[list[str]]:
    words = [shlex.split(span) for span in code_spans(page) if re.match(r"(lm|dvc|make|python) ", span)]
    return [command for command in words if not any(word.isupper() for word in command)]


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All flags of a parser and of its verbs."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options, action.choices.values()))
    return found


def verb_parser(words: list[str]) -> argparse.ArgumentParser:
    """The parser of the verb that `words` begin with, and of its format if it has some."""
    parser = make_parser("lm")
    for word in words:
        choices = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not choices or word.startswith("-"):
            break
        parser = choices[0][word]
    return parser


def script_options(script: str) -> dict[str, bool]:
    """The flags of a script in stages/, and whether each is required."""
    tree = ast.parse((PROJECT / f"stages/{script}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {
        call.args[0].value: any(keyword.arg == "required" for keyword in call.keywords)
        for call in calls
        if call.func.attr == "add_argument" and isinstance(call.args[0], ast.Constant)
    }


def wrong_paths(words: list[str]) -> list[str]:
    wrong = []
    for word in words:
        name = word.strip(",;:()'\"").rstrip("/")
        in_folder = re.fullmatch(r"[\w./-]+", name) and "/" in name and name.split("/")[0] in FOLDERS
        if not (in_folder or ROOT_FILE.fullmatch(name)) or any(part in name for part in PLACEHOLDERS):
            continue
        # The pipeline makes the folders in data/; dvc.yaml names them.
        in_pipeline = name.startswith("data/") and "/".join(name.split("/")[:2]) in DVC_YAML
        if not in_pipeline and not (PROJECT / name).exists() and name not in NOT_IN_GIT | NEW_PATHS:
            wrong.append(name)
    return wrong


def wrong_parameter(text: str) -> str | None:
    """`text` if it is a parameter, with or without a value, that params.yaml cannot hold."""
    match = re.fullmatch(rf"((?:{'|'.join(SECTIONS)})(?:\.\w+)+)(?:(?:=|: )(.+))?", text)
    if match is None or re.search(r"\.(json|csv|bin|txt|png|safetensors)$", text):
        return None
    name, value = match.groups()
    if name in NEW_PARAMETERS or (name, value) in NEW_VALUES:
        return None
    section, key, *_ = name.split(".")
    kind: Any = get_type_hints(SECTIONS[section]).get(key)
    if kind is None:
        return text
    if get_origin(kind) is Literal and value is not None and value not in get_args(kind):
        return text
    if kind is bool and value not in (None, "true", "false"):
        return text
    if kind in (int, float) and value is not None and not re.fullmatch(r"[\d.e,-]+", value):
        return text
    return None


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    words = [word for _, text in code_blocks(page) for word in text.split()]
    assert wrong_paths([*code_spans(page), *words]) == []


@pytest.mark.parametrize("page", PAGES)
def test_names_are_in_the_files_that_are_said_to_hold_them(page):
    for name, path in re.findall(r"`(\w+)` in `([\w./]+\.py)`", without_blocks(page)):
        if path not in NEW_PATHS:
            assert re.search(rf"\b{name}\b", (PROJECT / path).read_text(encoding="utf-8")), f"{name} in {path}"


@pytest.mark.parametrize("page", PAGES)
def test_parameters_exist(page):
    changes = [command[i + 1] for command in commands(page) for i, word in enumerate(command) if word == "-S"]
    assert [text for text in [*code_spans(page), *changes] if wrong_parameter(text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_sections_in_yaml_blocks_exist(page):
    for language, text in code_blocks(page):
        if language == "yaml":
            content = YAML(typ="safe").load(text)
            sections = content.keys() & SECTIONS.keys() if isinstance(content, dict) else ()
            for section in sections:
                wrong = [f"{section}.{key}" for key in content[section] if wrong_parameter(f"{section}.{key}")]
                assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page, capsys):
    for command in commands(page):
        words = command[2:] if command[:2] == ["python", "-m"] else command
        if words[0] == "lm":
            try:
                make_parser("lm").parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{' '.join(command)}: {capsys.readouterr().err}")
        for word in command:
            if word.startswith("stages."):
                given = {word for word in command[command.index(word) :] if word.startswith("--")}
                known = script_options(word.removeprefix("stages."))
                assert given <= known.keys(), command
                assert {flag for flag, required in known.items() if required} <= given, command


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_name_verbs_and_flags_that_exist(page):
    for command in span_commands(page):
        if command[0] == "lm":
            known = options(verb_parser(command[1:]))
            assert {word for word in command if word.startswith("--")} <= known, command


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page):
    scripts = [file.stem for file in (PROJECT / "stages").glob("*.py")]
    known = options(make_parser("lm")).union(*(script_options(script) for script in scripts))
    spans = [span.split()[0] for span in code_spans(page) if span.startswith("--")]
    assert [span for span in spans if span not in known] == []


@pytest.mark.parametrize("page", PAGES)
def test_stages_and_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    new_stages = {Path(path).stem for path in NEW_PATHS}
    for command in [*commands(page), *span_commands(page)]:
        if command[0] == "make":
            assert set(command[1:]) <= set(targets), command
        if command[:1] == ["dvc"] and command[1] in ("repro", "freeze", "unfreeze", "commit"):
            stages = [word for word in command[2:] if not word.startswith("-")]
            pipelines = {path.relative_to(PROJECT).as_posix() for path in PROJECT.glob("studies/*/dvc.yaml")}
            assert set(stages) <= STAGES.keys() | new_stages | pipelines, command


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    folder = (PROJECT / page).parent
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`\n]+`", "", without_blocks(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = folder / name if name else PROJECT / page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path), target


def test_the_messages_in_troubleshooting_exist():
    modules = [path.read_text(encoding="utf-8") for path in PROJECT.glob("lm/**/*.py")]
    texts = {node.value for text in modules for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    messages = re.findall(r"^\*\*`([^`]+)`", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    ours = [message for message in messages if not message.startswith(("dvc", "unable to acquire", "data/"))]
    assert ours
    for part in [part for message in ours for part in message.split("...")]:
        assert any(part in str(text) for text in texts), part


def test_the_readme_names_every_page_preset_and_folder():
    text = read("README.md")
    assert set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text)) == {page for page in PAGES if page.startswith("docs/")}
    _, _, table = text.partition("| preset |")
    rows = table.partition("\n\n")[0]
    presets = {path.stem for path in PROJECT.glob("lm/presets/*.yaml")}
    assert set(re.findall(r"^\| `([\w-]+)`", rows, flags=re.MULTILINE)) == presets
    folders = {f"lm/{path.parent.name}/" for path in PROJECT.glob("lm/*/__init__.py")}
    assert set(re.findall(r"^(lm/\w+/) ", text, flags=re.MULTILINE)) == folders


def test_every_preset_has_its_time_speed_and_memory_on_known_devices():
    presets = {path.stem for path in PROJECT.glob("lm/presets/*.yaml")}
    tables = re.findall(r"^\| preset \|(.+)\n\|[-:|]+\n((?:\|.+\n)+)", read("docs/how-long.md"), flags=re.MULTILINE)
    assert len(tables) == 3
    for header, rows in tables:
        devices = re.findall(r"`([\w-]+)`", header)
        assert set(devices) <= DEVICES.keys() and devices == re.findall(r"`([\w-]+)`", tables[0][0])
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
        assert sorted(name.strip("`") for name, *_ in cells) == sorted(presets)
        assert all(len(values) == len(devices) and all(values) for _, *values in cells)
