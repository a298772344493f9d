#!/usr/bin/env bash
# torch 2.13.0, torch._int_mm and torch.ops.onednn.qlinear_pointwise on x86: where a processor has no VNNI (AVX2, and
# AVX-512 before it), sums of products of int8 come out wrong, though they are told as int32, or as a float32 that could
# hold them. oneDNN adds pairs of products in 16 bits there, which saturate; its own page on int8 computations tells so
# (https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html), torch says nothing and gives no error.
# uint8 inputs of at most 127 are exact everywhere. With VNNI and without AMX another thing comes up: qlinear_pointwise of
# int8 inputs takes oneDNN's reference implementation, thousands of times slower than of uint8 inputs.
# Expected: torch._int_mm gives the sums, as its result type is int32.
# oneDNN's own switch ONEDNN_MAX_CPU_ISA stands for the older processors here; it needs one with AVX-512 VNNI or newer.
# Seqloom therefore tries the largest numbers once, and multiplies whole numbers as float32 where they come out wrong;
# its inputs are uint8.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'torch==2.13.0' numpy
cat >"$place/products.py" <<'PYTHON'
import os
import sys
import time

import torch

rows, inputs, outputs = 64, 256, 256
draw = torch.Generator().manual_seed(0)
weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=draw)
x = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8, generator=draw)
packed = torch.ops.onednn.qlinear_prepack(weight, None)
scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)


def qlinear(x, zero):
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


exact = (x.double() @ weight.double().t()).to(torch.int32)  # below 2^23
forms = {
    "_int_mm": lambda: torch._int_mm(x, weight.t()),
    "qlinear int8": lambda: qlinear(x, 0),
    "qlinear uint8": lambda: qlinear((x.short() + 128).to(torch.uint8), 128),
}
wrong, seconds = {}, {}
for name, form in forms.items():
    wrong[name] = (form() != exact).float().mean().item()
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        form()
        taken.append(time.perf_counter() - begun)
    seconds[name] = min(taken)
isa = os.environ["ONEDNN_MAX_CPU_ISA"]
print("torch", torch.__version__, "up to", isa)
for name in forms:
    print(f"  {name}: {wrong[name]:.1%} of the sums wrong, {1e3 * seconds[name]:.2f} ms")
if sys.argv[1] == "wrong":
    assert wrong["_int_mm"] > 0.5, "torch._int_mm is exact now"
else:
    assert not any(wrong.values()), "products are wrong with VNNI, too"
    assert seconds["qlinear int8"] > 20 * seconds["qlinear uint8"], "int8 inputs are fast without AMX now"
PYTHON
for isa in AVX2 AVX512_CORE; do
  ONEDNN_MAX_CPU_ISA=$isa "$place/venv/bin/python" "$place/products.py" wrong
done
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI "$place/venv/bin/python" "$place/products.py" right
