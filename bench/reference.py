"""What a case's output should be, in float64 on sampled heads and rows, and how wrong an output is."""

import math

import torch
from cases import NotMeasured

SAMPLED_HEADS = 3
KEY_FORMS = ("keys", "page_size", "csr", "used_k", "common")
REFERENCE_OPTIONS = ("window_left", "window_right", "softcap", "varlen", "bhsd", *KEY_FORMS)
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


def _plain_16(scores, values, dtype):
    """The textbook forward with P and the output rounded to 16 bits."""
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    return ((p.to(dtype).double() @ values) / p.sum(-1, keepdim=True)).to(dtype).double()


def _plain_32(q, k, v, scale, hidden):
    """The textbook forward in float32, term after term, for a matrix product sums in blocks. hidden: bool."""
    scores = q.new_zeros(len(q), len(k))
    for c in range(q.shape[1]):
        scores += q[:, c : c + 1] * k[:, c]
    scores = (scores * scale).masked_fill_(hidden, float("-inf"))
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    out, total = q.new_zeros(len(q), v.shape[1]), q.new_zeros(len(q), 1)
    for j in range(len(k)):
        out += p[:, j : j + 1] * v[j]
        total += p[:, j : j + 1]
    return (out / total).double()


class Reference:
    """Sampled rows in float64, and computed plainly in the case's precision."""

    def __init__(self, case, q, k, v):
        case.require(REFERENCE_OPTIONS, "compare.py's reference")
        self.case = case
        self.parts = []  # (sequence, first row of the sequence if packed, rows, head, expected)
        plain = []
        for i, head in _samples(case):
            first, len_q, len_k = sum(case.lengths_q[:i]), case.lengths_q[i], case.used_k[i]
            own_q = q[first : first + len_q] if case.varlen else q[i]
            sequence = own_q, case.rows_k(i, k), case.rows_k(i, v)
            rows = _rows(len_q, q.device)
            kv = head // (case.heads_q // case.heads_k)
            one = sequence[0][rows, head], sequence[1][:, kv], sequence[2][:, kv]
            q64, k64, v64 = (x.double() for x in one)
            hidden = self._hidden(case, rows + len_k - len_q, len_k)
            if hidden.all(-1).any():
                raise NotMeasured(f"compare.py knows no rows that see no key ({case.text})")
            scale = case.head_dim**-0.5
            scores = q64 @ k64.T * scale
            if case.softcap:
                scores = case.softcap * torch.tanh(scores / case.softcap)
            scores = scores.masked_fill_(hidden, float("-inf"))
            self.parts.append((i, first, rows, head, torch.softmax(scores, -1) @ v64))
            f32 = case.dtype == torch.float32
            if f32 and case.softcap:
                raise NotMeasured(f"compare.py knows softcap with 16-bit types ({case.text})")
            plain.append(_plain_32(*one, scale, hidden) if f32 else _plain_16(scores, v64, case.dtype))
        self.plain_error = self._error(plain)
        expected = torch.cat([part[-1].flatten() for part in self.parts])
        self.rounding = (expected.to(case.dtype).double() - expected).abs().max().item()

    @staticmethod
    def _hidden(case, positions, keys):
        """bool [rows, keys]: which keys a row does not see. positions: of the rows, counted as the keys are."""
        distance = torch.arange(keys, device=positions.device)[None, :] - positions[:, None]
        left, right = (math.inf if side is None else side for side in case.window)
        return (distance < -left) | (distance > right)

    def _error(self, actual):
        """(largest, relative in the Frobenius norm)"""
        expected = torch.cat([part[-1].flatten() for part in self.parts])
        difference = torch.cat([x.flatten() for x in actual]) - expected
        return difference.abs().max().item(), (difference.norm() / expected.norm()).item()

    def error_of(self, out):
        """(largest, relative) error of out; infinite if an element anywhere is not finite."""
        rows_at_once = max(1, 2**28 // (out.shape[-2] * out.shape[-1]))
        for piece in out.flatten(0, -3).split(rows_at_once):
            if not torch.isfinite(piece).all():
                return float("inf"), float("inf")
        pick = lambda i, first, rows, head: out[first + rows, head] if self.case.varlen else out[i, rows, head]  # noqa: E731
        return self._error([pick(*part[:-1]).double() for part in self.parts])

    def accepts(self, error):
        """The contract's tolerance (1.10)."""
        largest, relative = error
        return largest <= 2 * self.plain_error[0] + self.rounding and relative <= 1.2 * self.plain_error[1]
