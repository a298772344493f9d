"""What a table says of a row, and what is kept of it."""

import json

import pytest

from benchmarks.harness import results_file
from benchmarks.harness.table_rows import Row


@pytest.mark.parametrize(
    ("ratio", "lower_is_better", "told"),
    [
        (0.9, False, "0.90 of it (goal 1, not reached); why"),
        (1.1, False, "1.10 of it (goal 1, reached); why"),
        (0.9, True, "0.90 of it (goal at most 1, reached); why"),
        (1.0, True, "1.00 of it (goal at most 1, reached); why"),
        (1.1, True, "1.10 of it (goal at most 1, not reached); why"),
        (None, False, "it (goal 1, not measured); why"),
    ],
)
def test_a_goal_may_be_the_least_or_the_most(ratio: float | None, lower_is_better: bool, told: str):
    row = Row("work", "network", {}, [], ratio, "it", 1.0, lower_is_better, "why")
    assert results_file.table([row]).splitlines()[2].split("|")[3].strip() == told


def test_what_is_kept_has_a_line_for_each_row_and_numbers_of_four_digits(tmp_path):
    rows = [Row.of("work", f"H={n}", [{"frames_per_second": n / 3}, {"frames_per_second": n / 3 + 1}]) for n in (1, 10)]
    taken = {"date": "2026-01-02", "cores": 2, "processor": "AMD EPYC 9B14 with avx512_vnni"}
    path = results_file.save(tmp_path, "test-cpu", taken, "a table", rows)
    assert path.name == "2026-01-02-test-cpu-amd-epyc-9b14.json"
    assert len(path.read_text().splitlines()) == 2 + len(rows) + 1
    content = json.loads(path.read_text())
    assert content["conditions"] == taken
    assert content["rows"][1]["rounds"] == [{"frames_per_second": 3.333}, {"frames_per_second": 4.333}]
    page = path.with_suffix(".md").read_text()
    assert page.startswith("a table\n\nTaken on: AMD EPYC 9B14 with avx512_vnni. Medians")


@pytest.mark.parametrize(
    ("told", "short"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz with amx_bf16 avx512_bf16", "intel-xeon-platinum-8481c-amx"),
        ("Intel(R) Xeon(R) Processor with neither bfloat16 nor int8", "intel-xeon"),
        ("AMD EPYC 7763 64-Core Processor with avx512_vnni", "amd-epyc-7763"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M with avx512_bf16", "amd-ryzen-7-7840u"),
        ("AMD Ryzen 5 3400G with Radeon Vega Graphics with neither bfloat16 nor int8", "amd-ryzen-5-3400g"),
        ("aarch64 with neither bfloat16 nor int8", "aarch64"),
        ("", "unknown"),
    ],
)
def test_a_processor_has_a_short_name_in_files(told: str, short: str):
    assert results_file.processor_in_short(told) == short
