"""bench/rendering/gpu.py: what the page and the README say of sample rows, and of none."""

from __future__ import annotations

from pages import load_pages
from rendering import gpu

PAGES = load_pages()


def rendered(by_device):
    return gpu.render_devices(by_device, PAGES["gpu"])


def section_of(by_device):
    return gpu.render_readme(by_device, {**PAGES["gpu"], **PAGES["gpu_readme"]})


def row(step, what, **changes):
    return {
        "step": step,
        "what": what,
        "status": "ok",
        "reason": "",
        "run": "2026-01-01T00:00:00.000+00:00",
        "device": "Some GPU",
        "versions": {"torch": "2.9", "triton": "3.6", "numpy": "2"},
        "mmad_fast": "0.1.0",
        "commit": "0123456789abcdef",
        "commit_is_clean": True,
        "date": "2026-01-01T00:00:00",
    } | changes


def cfm_rows(**changes):
    facts = {"protocol": "paper", "weights_mib": 431.0} | changes
    return [
        row("cfm", "cfm", backend="published, torch", is_baseline=True, p50_ms=80.0, **facts),
        row("cfm", "cfm", backend="published, fast", is_baseline=True, p50_ms=40.0, **facts),
        row("cfm", "cfm", backend="cuda", p50_ms=5.0, error=1e-6, device_used_mib=700.0, **facts),
    ]


by_device = gpu.latest_rows


def test_without_rows_nothing_is_claimed():
    assert "No GPU has been measured yet" in rendered({})
    assert "Not measured yet" in section_of({})
    assert "| " not in rendered({}) + section_of({})


def test_the_latest_run_of_a_step_counts_and_devices_stand_apart():
    old = row("kernels", "op", p50_ms=1.0)
    new = row("kernels", "op", p50_ms=2.0, run="2026-01-02T00:00:00.000+00:00")
    ceiling = row("ceilings", "copy", gbs=9.0)
    report = row("report", "device")
    other = row("kernels", "op", p50_ms=3.0, device="Other GPU")
    found = by_device([new, old, ceiling, report, other])
    # Ceilings belong to the run of the kernels whose shares they are.
    assert found["Some GPU"] == [new, report]
    assert found["Other GPU"] == [other]
    text = rendered(found)
    assert text.index("## Some GPU") < text.index("## Other GPU")


def test_kernels_have_times_rates_and_errors_or_the_reason():
    good = row(
        *("kernels", "knn_grouping"),
        **{"backend": "cuda", "dtype": "float32", "shapes": {"N": 7, "G": 2}},
        **{"p50_ms": 0.1234, "p95_ms": 0.2, "p99_ms": None, "gflops": 1234.5, "flop_share": 0.256},
        **{"gbs": 50.0, "bandwidth_share": 0.025, "error": 1.5e-7, "warm_p50_ms": 0.12},
    )
    wrong = row("kernels", "knn_grouping", backend="triton", status="failed", reason="a|b")
    plain = row("kernels", "knn_grouping", backend="torch, topk", is_baseline=True, p50_ms=7.0)
    text = rendered(by_device([good, wrong, plain]))
    assert "| knn_grouping | N=7, G=2 | float32 | cuda | 0.123 | 0.2 |" in text
    assert "| 1234 | 26 % | 50 | 2 % | 1.5e-07 |" in text
    assert "failed: a/b" in text
    assert "*torch, topk*" in text
    assert "p99" not in text.partition("| knn_grouping")[0].rpartition("| op")[2]


def test_ops_stand_beside_the_fastest_that_torch_does():
    facts = {"dtype": "float32", "shapes": {"N": 7}}
    rows = [
        row("kernels", "op", backend="cuda", p50_ms=3.0, **facts),
        row("kernels", "op", backend="triton", p50_ms=2.0, **facts),
        row("kernels", "op", backend="torch, loop", is_baseline=True, p50_ms=9.0, **facts),
        row("kernels", "op", backend="torch, product", is_baseline=True, p50_ms=1.0, **facts),
        row("kernels", "op", backend="triton", p50_ms=4.0, shapes={"N": 8}),
    ]
    found = by_device(rows)
    expected = "| op | N=7 | float32 | triton | 2 | 1 | product | **0.5** |"
    assert expected in rendered(found)
    section = section_of(found)
    assert expected in section
    assert "has not been timed on this GPU: not asked for." in section
    assert "N=8" not in section
    missing = row("cfm", "cfm", backend="cuda", status="not run", reason="no provider; install x")
    assert "GPU: no provider." in section_of(by_device([*rows, missing]))


def test_a_long_reason_stands_once_below_its_table():
    reason = "a provider is missing " * 9
    rows = [
        row("cfm", name, backend="cuda", protocol="paper", status="not run", reason=reason)
        for name in ("cfm", "cfm-t")
    ]
    text = rendered(by_device(rows))
    assert text.count("not run [1]") == 2
    assert text.count(reason.strip()) == 1


def test_of_the_configurations_the_fastest_is_shown():
    facts = {"kernel": "k", "shapes": {"N": 1}, "dtype": "float32"}
    rows = [
        row("configurations", "op", config="A", p50_ms=2.0, **facts),
        row(
            "configurations",
            "op: fastest",
            config="B",
            p50_ms=1.0,
            default_p50_ms=2.0,
            is_default=False,
            **facts,
        ),
    ]
    text = rendered(by_device([row("kernels", "op", p50_ms=2.0), *rows]))
    assert "| op | k | N=1 | float32 | B | 1 | 2 | no |" in text
    assert "| A |" not in text


def test_cfm_is_compared_within_its_run_and_protocol():
    end_to_end = row("cfm", "cfm", backend="cuda", protocol="end-to-end", p50_ms=9.0)
    absent = row(
        *("cfm", "cfm-t"), backend="cuda", protocol="paper", status="not run", reason="no provider"
    )
    found = by_device([*cfm_rows(), end_to_end, absent])
    text = rendered(found)
    # 40 / 5: against the published pipeline that samples in a kernel, as the published code does.
    assert "| cfm | cuda | 5 | 200 | 8 | 1e-06 | 431 | 700 |" in text
    assert "*published, torch*" in text
    assert "| cfm | cuda | 9 | 111 |" in text
    assert "not run: no provider" in text
    section = section_of(found)
    assert "**Some GPU**" in section
    assert (
        "torch 2.9, triton 3.6, numpy 2; mmad-fast 0.1.0, commit 0123456789, 2026-01-01." in section
    )
    only_published = by_device(cfm_rows()[:2])
    assert "Not measured yet" in section_of(only_published)


def test_the_other_steps_have_their_tables():
    rows = [
        row(
            *("report", "device"),
            **{"compute_capability": 90, "multiprocessors": 132, "memory_mib": 81559.0},
            **{"l2_mib": 50.0, "nvcc": "release 13.0", "nvidia_smi": {"power.limit": "700 W"}},
        ),
        row("build", "pip install", seconds=100.0),
        row("tests", "tests", passed=1500, skipped=3, failed=0, gpu_tests=400, seconds=90.0),
        row("ceilings", "copy", gbs=2900.0, p50_ms=0.3),
        row("kernels", "op", p50_ms=1.0),
        row("cubins", "op", p50_ms=1.0, error=0.0, difference_to_jit=0.0),
        row("graph", "chain of ops", backend="eager", p50_ms=2.0, shapes={"N": 1}),
        row("graph", "chain of ops", backend="CUDA graph", p50_ms=1.0, ratio_to_eager=2.0),
        row("sanitizer", "memcheck", status="not run", reason="is not on the PATH"),
    ]
    text = rendered(by_device(rows))
    assert "sm_90, 132 multiprocessors, 81559 MiB, L2 50 MiB; release 13.0." in text
    assert "nvidia-smi: power.limit 700 W." in text
    assert "| tests | ok | 1500 | 3 | 0 | 400 | 90 |" in text
    assert "| copy | 0.3 | 2900 |" in text
    assert "CUDA graph" in text
    assert "| memcheck | not run | is not on the PATH |" in text
