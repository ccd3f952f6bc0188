"""Reading what DVC prints; tests/studies/test_side_by_side.py runs DVC itself."""

from lm.studies import dvc

# The output of `dvc repro --single-item a b c d` of DVC 3.67, where d fails.
OUTPUT = """\
Stage 'a' didn't change, skipping
Running stage 'b':
> python -m stages.b
12 tokens
0.4 s, of which 0.1 s were start-up
Updating lock file 'dvc.lock'

Stage 'c' is cached - skipping run, checking out outputs
Running stage 'd':
> python -m stages.d
error: d.txt: there is no such file
ERROR: failed to reproduce 'd': failed to run: python -m stages.d, exited with 1
"""


def test_the_output_is_divided_by_stage():
    outputs = dvc.stage_outputs(OUTPUT)
    assert list(outputs) == ["a", "b", "c", "d"] and "".join(outputs.values()) == OUTPUT
    assert [stage for stage, output in outputs.items() if dvc.is_unchanged(output)] == ["a"]
    assert dvc.failed_stage(OUTPUT) == "d" and dvc.failed_stage(outputs["b"]) is None


def test_the_last_line_is_about_the_work_of_a_stage():
    outputs = dvc.stage_outputs(OUTPUT)
    assert [dvc.last_line(output) for output in outputs.values()] == [
        None,
        "12 tokens",
        None,
        "error: d.txt: there is no such file",
    ]


def test_a_stage_that_was_killed_has_an_exit_status():
    output = "Running stage 'd':\nERROR: failed to reproduce 'd': failed to run: python -m d, exited with -9\n"
    assert dvc.last_line(output) is None
    assert dvc.exit_status(output) == "it wrote no message and exited with status -9"


def test_a_lock_is_recognized():
    assert dvc.is_locked("ERROR: Unable to acquire lock. Most likely another DVC process is running")
    assert not dvc.is_locked(OUTPUT)
