"""What a case's output should be, in float64 on sampled heads and rows, and how wrong an output is."""

import torch

SAMPLED_HEADS = 3
EDGE_ROWS = 128  # of a long sequence: so many at its start, middle and end


def _samples(case):
    """(sequence, head) pairs: first, last, and one between."""
    return sorted({(0, 0), (case.batch - 1, case.heads_q - 1), (case.batch // 2, case.heads_q // 3)})[:SAMPLED_HEADS]


def _rows(s, device):
    rows = torch.arange(s, device=device)
    if s <= 16 * EDGE_ROWS:
        return rows
    middle = s // 2
    return torch.cat([rows[:EDGE_ROWS], rows[middle : middle + EDGE_ROWS], rows[-EDGE_ROWS:]])


def _plain(scores, values, dtype):
    """The textbook forward in the case's precision. bf16, f16: P and the output are rounded. f32: sums of float32."""
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    if dtype != torch.float32:
        return ((p.to(dtype).double() @ values) / p.sum(-1, keepdim=True)).to(dtype).double()
    p, values = p.float(), values.float()
    out, total = p.new_zeros(p.shape[0], values.shape[1]), p.new_zeros(p.shape[0], 1)
    for j in range(len(values)):  # one key after the other: a matrix product would sum in blocks
        out += p[:, j : j + 1] * values[j]
        total += p[:, j : j + 1]
    return (out / total).double()


class Reference:
    """Sampled rows in float64, and computed plainly in the case's precision."""

    def __init__(self, case, q, k, v):
        self.case = case
        self.parts = []  # (sequence, first row of the sequence if packed, rows, head, expected)
        plain = []
        for i, head in _samples(case):
            first = sum(case.lengths[:i])
            span = slice(first, first + case.lengths[i])
            sequence = [x[span] if case.varlen else x[i] for x in (q, k, v)]
            rows = _rows(case.lengths[i], q.device)
            kv = head // (case.heads_q // case.heads_k)
            scores = sequence[0][rows, head].double() @ sequence[1][:, kv].double().T / case.head_dim**0.5
            distance = torch.arange(case.lengths[i], device=q.device)[None, :] - rows[:, None]
            left, right = case.window
            if left is not None:
                scores.masked_fill_(distance < -left, float("-inf"))
            if right is not None:
                scores.masked_fill_(distance > right, float("-inf"))
            p = torch.exp(scores - scores.amax(-1, keepdim=True))
            total = p.sum(-1, keepdim=True)
            values = sequence[2][:, kv].double()
            self.parts.append((i, first, rows, head, p @ values / total))
            plain.append(_plain(scores, values, case.dtype))
        self.plain_error = self._error(plain)
        expected = torch.cat([part[-1].flatten() for part in self.parts])
        self.rounding = (expected.to(case.dtype).double() - expected).abs().max().item()

    def _error(self, actual):
        """(largest, relative in the Frobenius norm)"""
        expected = torch.cat([part[-1].flatten() for part in self.parts])
        difference = torch.cat([x.flatten() for x in actual]) - expected
        return difference.abs().max().item(), (difference.norm() / expected.norm()).item()

    def error_of(self, out):
        """(largest, relative) error of out; infinite if an element anywhere is not finite."""
        for piece in out.flatten(0, -3).split(max(1, 2**28 // max(out[..., 0, 0].numel(), 1))):
            if not torch.isfinite(piece).all():
                return float("inf"), float("inf")
        pick = lambda i, first, rows, head: out[first + rows, head] if self.case.varlen else out[i, rows, head]  # noqa: E731
        return self._error([pick(*part[:-1]).double() for part in self.parts])

    def accepts(self, error):
        """The contract's tolerance (1.10)."""
        largest, relative = error
        return largest <= 2 * self.plain_error[0] + self.rounding and relative <= 1.2 * self.plain_error[1]
