#!/usr/bin/env python3
"""One sequence on two GPUs beside the same on one of them: times, what NCCL carries, and a timeline.

    python3 bench/parallel.py --commit $(git rev-parse HEAD) --write bench/results/h200-x2

Starts a process a GPU. A case is validated first: every rank's rows beside those of one GPU with everything. One GPU's
time is that of the faster of the two, both at it at once; that of both is the slower rank's, between the ends of calls
one behind the other: medians of CUDA events. The timeline is CUPTI's, of three calls one behind the other. Beside it
runs torch's experimental context_parallel, with as many K/V heads as query heads, where that runs.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time

import foveal
import foveal.parallel
import results_file
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from telemetry import Telemetry

HEADS, HEADS_K, DIM = 32, 8, 128
K = 1024
MASKS = {
    "full": ({}, "contiguous"),
    "causal": ({"causal": True}, "zigzag"),
    "left4096 right0": ({"window": (4095, 0)}, "contiguous"),
}
# (mask, s, calls of one GPU, calls of two, methods)
ALL = ("ring", "all_gather", "ulysses")
CASES = [
    ("causal", 32 * K, 10, 20, ALL),
    ("full", 32 * K, 10, 20, ALL),
    ("left4096 right0", 512 * K, 5, 10, ("ring", "all_gather")),
    ("causal", 128 * K, 3, 5, ALL),
    ("full", 128 * K, 2, 3, ALL),
    ("causal", 512 * K, 1, 1, ("ring",)),
    ("full", 512 * K, 1, 1, ("ring",)),
]
LINK_BYTES = [2**20, 2**24, 2**26, 2**28, 2**30]  # that each rank sends to the other
TRACED = [("causal", 32 * K, "ring"), ("causal", 128 * K, "ring"), ("causal", 32 * K, "all_gather")]


def flops(mask, s):
    pairs = {"full": s * s, "causal": s * (s + 1) / 2}.get(mask, 4096 * s - 4096 * 4095 / 2)
    return 4 * pairs * DIM * HEADS


class Bench:
    """What a rank's process does."""

    def __init__(self, rank, options):
        self.rank, self.ranks = rank, dist.get_world_size()
        self.device = torch.device("cuda", rank)
        self.telemetry = Telemetry(getattr(torch.cuda.get_device_properties(rank), "uuid", None))
        self.options = options
        self.began = time.monotonic()

    def say(self, *what):
        if self.rank == 0:
            print(f"{time.monotonic() - self.began:6.1f} s", *what, flush=True)

    def meet(self):
        dist.all_reduce(torch.zeros(1, device=self.device))
        torch.cuda.synchronize()

    def of_all(self, value):
        values = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def timed(self, call, calls):
        """Milliseconds: the median of the times between the ends of calls; of several the first is not timed."""
        self.meet()
        self.telemetry.take()
        self.telemetry.on = True
        events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
        if calls > 1:
            call()
        for event in events[:1]:
            event.record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        self.telemetry.on = False
        times = [a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]
        return statistics.median(times)

    def case(self, mask, s, calls_of_one, calls_of_two, methods):
        keywords, placement = MASKS[mask]
        generator = torch.Generator(self.device).manual_seed(s)
        q, k, v = (
            torch.randn(1, s, heads, DIM, generator=generator, device=self.device, dtype=torch.bfloat16)
            for heads in (HEADS, HEADS_K, HEADS_K)
        )
        spans = foveal.parallel.spans([s], self.ranks, placement)
        own = [foveal.parallel.take(t, spans, self.rank, [s]).contiguous() for t in (q, k, v)]
        one_out = foveal.attention(q, k, v, **keywords) if calls_of_one > 1 else None
        ms = self.timed(lambda whole=(q, k, v): foveal.attention(*whole, **keywords), calls_of_one)
        row = {"case": f"b1 s{s} hq{HEADS} hk{HEADS_K} d{DIM} bf16 {mask}", "flops": flops(mask, s)}
        one = self.of_all((ms, *self.telemetry.take()))
        row["one_ms"] = [values[0] for values in one]
        row["one_sm_mhz"], row["one_watts"] = ([values[i] for values in one] for i in (1, 2))
        row["two_ms"], row["speed_up"], row["sm_mhz"], row["watts"], row["largest_difference"] = {}, {}, {}, {}, {}
        expected = one_out if one_out is not None else foveal.attention(q, k, v, **keywords) if s < 512 * K else None
        if expected is not None:
            expected = foveal.parallel.take(expected, spans, self.rank, [s])
        del q, k, v, one_out
        for method in methods:

            def call(method=method):
                return foveal.parallel.attention(*own, placement=placement, method=method, **keywords)

            out = call()
            difference = None
            if expected is not None:
                difference = ((out.float() - expected.float()).norm() / expected.float().norm()).item()
                # P and out are rounded twice, to bf16: each is 2e-3 off what is exact.
                if not difference < 4e-3:
                    raise SystemExit(f"{row['case']}, {method}: wrong by {difference}")
            del out
            two = self.of_all((self.timed(call, calls_of_two), *self.telemetry.take(), difference))
            slowest = max(values[0] for values in two)
            row["two_ms"][method] = slowest
            row["speed_up"][method] = min(row["one_ms"]) / slowest
            row["sm_mhz"][method], row["watts"][method] = ([values[i] for values in two] for i in (1, 2))
            row["largest_difference"][method] = max(values[3] or 0 for values in two)
        self.say(
            f"{row['case']}: one {min(row['one_ms']):.3f} ms ({row['flops'] / min(row['one_ms']) / 1e9:.0f} TFLOP/s, "
            f"{row['one_sm_mhz']} MHz, {row['one_watts']} W)",
            *(
                f"| {m} {ms:.3f} ms, {row['speed_up'][m]:.3f} x, {row['sm_mhz'][m]} MHz, "
                f"differs by {row['largest_difference'][m]:.1e}"
                for m, ms in row["two_ms"].items()
            ),
        )
        return row

    def link(self):
        """What NCCL's send and receive carry, both ways at once."""
        rows = []
        peer = 1 - self.rank
        for size in LINK_BYTES:
            out, into = (torch.zeros(size, dtype=torch.uint8, device=self.device) for _ in range(2))

            def call(out=out, into=into):
                sends = [dist.P2POp(dist.isend, out, peer), dist.P2POp(dist.irecv, into, peer)]
                for work in dist.batch_isend_irecv(sends):
                    work.wait()

            call()
            ms = max(self.of_all(self.timed(call, 20)))
            rows.append({"bytes": size, "us": ms * 1e3, "bytes_per_second": size / ms * 1e3})
            self.say(f"link: {size / 2**20:.0f} MiB each way: {ms * 1e3:.1f} us, {size / ms / 1e6:.1f} GB/s")
        return rows

    def timeline(self, mask, s, method):
        """Kernels and copies of one call: [name, stream, begin, microseconds]."""
        keywords, placement = MASKS[mask]
        spans = foveal.parallel.spans([s], self.ranks, placement)
        rows = sum(n for r, _, _, n in spans if r == self.rank)
        own = [
            torch.randn(1, rows, h, DIM, device=self.device, dtype=torch.bfloat16) for h in (HEADS, HEADS_K, HEADS_K)
        ]

        def call():
            return foveal.parallel.attention(*own, placement=placement, method=method, **keywords)

        for _ in range(3):
            call()
        self.meet()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
        events = [
            [e.name[:120], e.device_resource_id, e.time_range.start, e.time_range.end - e.time_range.start]
            for e in profile.events()
            if e.device_type == torch.autograd.DeviceType.CUDA
        ]
        return {"case": f"b1 s{s} {mask}", "method": method, "ranks": self.of_all(sorted(events, key=lambda e: e[2]))}

    def torch_context_parallel(self, mask, s, calls):
        """torch's, whole tensors on each rank, which it shards itself."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.experimental import context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        mesh = init_device_mesh("cuda", (self.ranks,), mesh_dim_names=("ranks",))
        found = {}
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            try:
                q, k, v = (torch.randn(1, HEADS, s, DIM, device=self.device, dtype=torch.bfloat16) for _ in range(3))
                with context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]), sdpa_kernel(backend):

                    def call(q=q, k=k, v=v):
                        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=mask == "causal")

                    call()
                    found[name] = self.timed(call, calls)
            except Exception as error:  # it is experimental, and this only stands beside
                found[name] = f"{type(error).__name__}: {error}"[:300]
            found[name] = max(self.of_all(found[name]), key=str)
        self.say(f"torch's context_parallel, s{s} {mask}, h{HEADS}: {found}")
        return {"case": f"b1 s{s} h{HEADS} d{DIM} bf16 {mask}", "two_ms": found}


def work(rank, options):
    torch.cuda.set_device(rank)
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast can harm a host that others share
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    device = torch.device("cuda", rank)
    dist.init_process_group("nccl", rank=rank, world_size=2, device_id=device)
    bench = Bench(rank, options)
    document = {
        "suite": "parallel",
        "gpu": f"2 x {torch.cuda.get_device_name(device)}",
        "driver": bench.telemetry.driver(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "torch": torch.__version__,
        "commit": options.commit,
        "date": time.strftime("%Y-%m-%d"),
        "command": options.command,
        "rows": [],
        "timelines": [],
        "torch_context_parallel": [],
    }
    document["link"] = bench.link()
    wanted = [case for case in CASES if case[1] // K in options.lengths]
    for case in wanted:
        document["rows"].append(bench.case(*case))
        save(rank, options, document)
    for traced in TRACED:
        if traced[1] // K not in options.lengths or options.no_timeline:
            continue
        with contextlib.suppress(RuntimeError):  # no CUPTI: no timeline
            document["timelines"].append(bench.timeline(*traced))
            bench.say("timeline", *traced, len(document["timelines"][-1]["ranks"][0]), "events")
        save(rank, options, document)
    for mask, s, calls in (("causal", 32 * K, 5), ("causal", 128 * K, 2)):
        if options.peer and s // K in options.lengths:
            document["torch_context_parallel"].append(bench.torch_context_parallel(mask, s, calls))
            save(rank, options, document)
    bench.meet()
    dist.destroy_process_group()


def save(rank, options, document):
    if rank == 0 and options.write:
        results_file.write(options.write, "parallel", document)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="of the code measured")
    parser.add_argument("--write", help="folder of the results file")
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 128, 512], help="in Ki rows; default: all")
    parser.add_argument("--no-timeline", action="store_true")
    parser.add_argument("--peer", action="store_true", help="torch's context_parallel as well")
    parser.add_argument("--port", type=int, default=29533)
    options = parser.parse_args()
    options.command = " ".join(sys.argv)
    mp.spawn(work, (options,), nprocs=2)


if __name__ == "__main__":
    main()
