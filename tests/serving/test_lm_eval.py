"""EleutherAI's evaluation harness runs tasks of its own against the server, over the API that others serve too."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm.export.hugging_face import export_hugging_face
from lm.model.files import save_model

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

TEXTS = ["abcdef", "wxyz", "a bc", "zebra"]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three local tasks, one of each kind that lm-eval has: choices, the likelihood of a text, and generation."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = [
        {"start": "abc", "right": "defg", "wrong": "dxyz"},
        {"start": "m", "right": "nop", "wrong": "pon"},
        {"start": "q", "right": "rs", "wrong": "stu"},
        {"start": "u", "right": "u", "wrong": "v"},  # the model prefers the wrong one
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    common = "dataset_path: json\ntest_split: test\nnum_fewshot: 0\ntarget_delimiter: ''\n"
    common += f"dataset_kwargs: {{data_files: {{test: {folder}/"
    (folder / "choose.yaml").write_text(
        f"task: choose\noutput_type: multiple_choice\n{common}questions.jsonl}}}}\ndoc_to_text: '{{{{start}}}}'\n"
        "doc_to_choice: '{{[right, wrong]}}'\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "texts.yaml").write_text(
        f"task: texts\noutput_type: loglikelihood_rolling\n{common}texts.jsonl}}}}\ndoc_to_text: ''\n"
        "doc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    (folder / "continue.yaml").write_text(
        f"task: continue\noutput_type: generate_until\n{common}questions.jsonl}}}}\ndoc_to_text: '{{{{start}}}}'\n"
        "doc_to_target: '{{right}}'\nmetric_list: [{metric: exact_match}]\n"
        "generation_kwargs: {until: ['h', '\\n'], max_gen_toks: 4, do_sample: false}\n"
    )
    return folder


def test_lm_eval_runs_local_tasks(serving, alphabet, random_model, tokenizer, tasks, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    save_model(tmp_path / "model", random_model, tokenizer.hash)
    export_hugging_face(tmp_path / "model", tmp_path / "tokenizer", tmp_path / "exported")
    with serving(alphabet) as server:
        model = f"model=tiny,base_url={server.url}v1/completions,tokenizer={tmp_path}/exported,max_length=128"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model]
        command += ["--tasks", "choose,texts,continue", "--include_path", str(tasks), "--batch_size", "3"]
        process = subprocess.run(
            [*command, "--output_path", str(tmp_path / "out")],
            env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert process.returncode == 0, process.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    assert results["choose"]["acc,none"] == 0.75
    assert results["continue"]["exact_match,none"] == 0.25  # defg, stopped before h

    # The independent truth: the model reads each text after an end-of-text token.
    nats = 0.0
    for text in TEXTS:
        ids = tokenizer.encode_prompt(text)
        with torch.no_grad():
            nats -= float(alphabet(torch.tensor(ids)).log_softmax(-1)[range(len(text)), ids[1:]].sum())
    num_bytes = sum(map(len, TEXTS))
    assert results["texts"]["bits_per_byte,none"] == pytest.approx(nats / num_bytes / math.log(2), rel=1e-5)
