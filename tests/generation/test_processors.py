"""The kernels, compiled for processors with fewer instructions than this one has."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# The program replaces what LLVM says about this processor before anything else asks. int8 products of the PyTorch
# decoder use the same kernels, so they are compared with those of the weights in float32.
PROGRAM = """
import sys
from pathlib import Path
from llvmlite import binding

missing = sys.argv[2].split(",")
features = binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith(tuple(missing))})
binding.get_host_cpu_name, binding.get_host_cpu_features = lambda: sys.argv[1], lambda: features

import torch
from lm import config
from lm.generation.decoder import Decoder
from lm.generation.kernels import tiles
from lm.generation.numba_decoder import NumbaDecoder
from lm.generation.panels import pack_int8, unpack_int8
from lm.generation.quantized import QuantizedLinear, to_int8
from lm.model.transformer import TransformerLM

assert (tiles.HAS_VNNI, tiles.MOST_ROWS) == (False, 4)
torch.manual_seed(0)
weight, x = torch.randn(40, 100), torch.randn(7, 100)
panels = pack_int8(weight)
exact = x @ unpack_int8(panels, torch.arange(40), 100).T
torch.testing.assert_close(QuantizedLinear(100, 40, panels)(x), exact, atol=0.3, rtol=0)
for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.05)):
    model = TransformerLM(config.load(Path("params.yaml")).model, 50).eval()
    model = to_int8(model) if dtype == "int8" else model.to(getattr(torch, dtype))
    prompts = [[1, 2, 3], [4], [5, 6], [7], list(range(20))]
    got, expected = (make(model, 5) for make in (NumbaDecoder, Decoder))
    logits, others = got.prefill(range(5), prompts), expected.prefill(range(5), prompts)
    for _ in range(10):
        torch.testing.assert_close(logits, others.float(), atol=tolerance, rtol=0)
        token_ids = others.argmax(-1).tolist()
        if dtype == "float32":
            assert logits.argmax(-1).tolist() == token_ids
        logits, others = got.decode(token_ids), expected.decode(token_ids)
"""


@pytest.mark.slow  # compiles the kernels
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are processors of that kind")
@pytest.mark.parametrize(
    ("name", "missing"), [("haswell", "avx512,avxvnni,amx"), ("x86-64-v2", "avx,amx,fma,f16c,bmi,lzcnt,movbe")]
)
def test_other_processors_get_the_same_logits(name, missing, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, name, missing]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
