"""Time and memory on the device that a benchmark runs on. The GPU's part has not run yet."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def pick_device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock(device: torch.device) -> Callable[[], float]:
    """Return what tells seconds: of CUDA events, which see the device's own time, or of the host."""
    if device.type != "cuda":
        return time.perf_counter
    start = torch.cuda.Event(enable_timing=True)
    start.record()

    def elapsed_s() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return start.elapsed_time(now) / 1000

    return elapsed_s


def peak_memory_mb(call: Callable[[], object], device: torch.device) -> float:
    """Return the most memory, in MB, that a call's tensors take at once, without those of before it.

    It runs twice: what the first call leaves for good, such as optimizer state, is not counted. On the CPU
    what the call frees of older memory is not seen, so that new gradients count in full; on a GPU they take
    the place of the old ones.
    """
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    memory.sort(key=lambda event: event["ts"])
    total, peak = 0, 0
    for event in memory:
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak / 1e6
