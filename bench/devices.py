"""What is measured on: rounds of samples on a GPU, in CUDA events, and on the CPU, by the clock."""

import os
import pathlib
import platform
import re
import sys
import time

import torch
from telemetry import Telemetry


def _last_cache_bytes():
    """Of the CPU; 32 MiB where the system does not say."""
    sizes = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kib = [int(path.read_text().strip().removesuffix("K")) for path in sizes]
    return 1024 * max(kib, default=32768)


class Gpu:
    """Times in CUDA events; `repeats` calls of a sample lie in one graph."""

    name = "cuda"
    sample_seconds = 2e-3  # one timed sample lasts at least this long

    def __init__(self):
        properties = torch.cuda.get_device_properties(0)
        self.telemetry = Telemetry(getattr(properties, "uuid", None))
        if self.telemetry.nvml is None:
            print(f"no clocks, watts or joules: {self.telemetry.why_not}", file=sys.stderr)
        self.cache_bytes = properties.L2_cache_size
        self.about = {"gpu": properties.name, "driver": self.telemetry.driver(), "cuda": torch.version.cuda}

    def estimate(self, case):
        return max(case.flops / 600e12, case.bytes / 3e12, 1e-5)

    synchronize = staticmethod(torch.cuda.synchronize)

    def sampled(self, call, repeats):
        return call if repeats == 1 else self.captured(lambda: call, repeats)[0]

    def captured(self, prepare, repeats):
        """Replays so many calls of what prepare() returns, and that; prepared, called and recorded on one stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call = prepare()
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                call()
        return graph.replay, call

    def round(self, samples):
        """Seconds of each sample, one after the other on the device."""
        events = []
        for name, sample in samples:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            sample()
            end.record()
            events.append((name, begin, end))
        torch.cuda.synchronize()
        return [(name, begin.elapsed_time(end) * 1e-3) for name, begin, end in events]

    def free(self):
        torch.cuda.empty_cache()


class Cpu:
    name = "cpu"
    sample_seconds = 30e-3  # PyTorch's threads spin for milliseconds after their work, in the way of who comes next

    def __init__(self):
        self.telemetry = Telemetry()
        info = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
        field = re.search(r"model name\s*: (.*)", info)
        model = field[1] if field else platform.machine()
        self.cache_bytes = _last_cache_bytes()
        self.about = {"gpu": None, "cpu": model, "threads": torch.get_num_threads(), "torch": torch.__version__}

    def estimate(self, case):
        return max(case.flops / 100e9, case.bytes / 10e9, 1e-5)

    def synchronize(self):
        pass

    def sampled(self, call, repeats):
        def sample():
            for _ in range(repeats):
                call()

        return sample if repeats > 1 else call

    def round(self, samples):
        times = []
        for name, sample in samples:
            begin = time.perf_counter()
            sample()
            times.append((name, time.perf_counter() - begin))
        return times

    def free(self):
        pass
