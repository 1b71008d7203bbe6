"""What a card sustains at best, as measured (docs/performance-log.md); the tool `foveal` knows the same of the H200."""

SUSTAINED = {"NVIDIA H200": (791e12, 4.27e12)}  # FLOP/s of 16-bit products, bytes/s of DRAM


def bound_us(gpu, row):
    """The least time of a row of a results file, from its FLOPs and bytes; None for a card that is not known."""
    if gpu not in SUSTAINED:
        return None
    flops, bytes_ = SUSTAINED[gpu]
    return 1e6 * max(row["flops"] / flops, row["bytes"] / bytes_)
