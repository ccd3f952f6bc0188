import json
import sys
from pathlib import Path

import pytest

from bench.tokenizer import long_pre_tokens, scaling
from bench.tokenizer.scaling import predict, report


def test_the_prediction_is_amdahls_law_up_to_the_bandwidth() -> None:
    assert predict(0, 8, 100, 1e9) == 8
    assert predict(1, 8, 100, 1e9) == 1
    assert predict(0.1, 2, 100, 1e9) == pytest.approx(1 / 0.55)
    # 5.5 bytes are moved for each byte of text, so 1,100 MB/s suffice for 200 MB/s of text.
    assert predict(0, 8, 100, 1100) == pytest.approx(2)


def test_the_table_has_a_row_per_task_and_text() -> None:
    row = {"task": "encode", "text": "stories", "serial": 0.05}
    rows = [
        row | {"threads": 1, "mb_per_second": 200.0},
        row | {"threads": 2, "mb_per_second": 340.0},
        row | {"processes": 2, "mb_per_second": 360.0},
    ]
    lines = report(rows, 1e6).splitlines()
    assert "1000.0 GB/s" in lines[0]
    assert lines[2].startswith("| task | text | MB/s | serial | threads 2 | processes 2 | predicted 2 |")
    assert lines[4:] == ["| encode | stories | 200 | 5.0% | 1.70 | 1.80 | 1.90 | 3.48 | 5.93 | 9.14 |"]


@pytest.mark.slow
def test_a_small_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(scaling, "_GENERATED_BYTES", 2_000_000)
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["bench.tokenizer.scaling", "--repeats", "1", "--json", str(path)])
    scaling.main()
    assert len(capsys.readouterr().out.splitlines()) == 4 + 4
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(rows) == 4 * 3
    assert all(0 <= row["serial"] < 1 for row in rows if row.get("threads") == 1)


def test_each_kind_of_long_pre_token_has_a_row_per_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_pre_tokens, "_TRAINING_BYTES", 100_000)
    monkeypatch.setattr(long_pre_tokens, "_REPEATS", 1)
    monkeypatch.setattr(sys, "argv", ["bench.tokenizer.long_pre_tokens", "--megabytes", "0.001", "0.002"])
    long_pre_tokens.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 3 * len(long_pre_tokens.TEXTS)
    assert all(len(make_text(3000).encode()) == 3000 for make_text in long_pre_tokens.TEXTS.values())
