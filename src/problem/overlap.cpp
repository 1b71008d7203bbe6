#include "problem/overlap.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include "problem/dtype.hpp"
#include "problem/strides.hpp"

namespace foveal {
namespace {

constexpr int kMaxSearchSteps = 1000;

__extension__ using Wide = __int128;  // sums of two 64-bit reaches

// Sums of count_i * stride_i with 0 <= count_i <= limit_i: the bytes of a tensor, relative to its first, are such sums.
class StrideSums {
   public:
    void add(int64_t stride, Wide limit) {
        if (limit <= 0 || stride == 0) return;
        const auto end = terms_.begin() + size_;
        const auto at = std::lower_bound(terms_.begin(), end, stride,
                                         [](const Term& term, int64_t other) { return term.stride < other; });
        if (at != end && at->stride == stride) {
            at->limit += limit;
            return;
        }
        std::move_backward(at, end, end + 1);
        *at = {stride, limit, 0, false};
        ++size_;
    }

    // To be called once all terms are there.
    bool contain(Wide target) {
        Wide reach = 0;
        bool dense = true;
        for (int i = 0; i < size_; ++i) {
            Term& term = terms_[static_cast<size_t>(i)];
            dense = dense && term.stride <= reach + 1;
            reach += static_cast<Wide>(term.stride) * term.limit;
            term.reach = reach;
            term.dense = dense;
        }
        return search(size_ - 1, target);
    }

   private:
    struct Term {
        int64_t stride;
        Wide limit;
        Wide reach;  // the largest sum of this term and those of smaller strides
        bool dense;  // and whether every number up to there is one
    };

    // Is target a sum of the terms 0 ... last?
    bool search(int last, Wide target) {
        if (target == 0) return true;
        if (last < 0 || target < 0) return false;
        const Term& term = terms_[static_cast<size_t>(last)];
        if (target > term.reach) return false;
        if (term.dense || ++steps_ > kMaxSearchSteps) return true;
        const Wide inner = last > 0 ? terms_[static_cast<size_t>(last - 1)].reach : 0;
        const Wide least = target > inner ? (target - inner + term.stride - 1) / term.stride : 0;
        for (Wide n = least; n <= term.limit && n * term.stride <= target; ++n)
            if (search(last - 1, target - n * term.stride)) return true;
        return false;
    }

    std::array<Term, 2 * FOVEAL_MAX_RANK + 2> terms_{};
    int size_ = 0;
    int steps_ = 0;
};

// Distance of the tensor's last byte from its first.
Wide reach_bytes(const foveal_tensor& t) {
    int64_t reach = 0;
    for (int i = 0; i < t.rank; ++i) reach += stride_or_zero(t, i) * (t.shape[i] - 1);
    return static_cast<Wide>(reach * bytes_of(dtype_of(t))) + bytes_of(dtype_of(t)) - 1;
}

void add_terms(StrideSums& sums, const foveal_tensor& t) {
    for (int i = 0; i < t.rank; ++i) sums.add(stride_or_zero(t, i) * bytes_of(dtype_of(t)), t.shape[i] - 1);
    sums.add(1, bytes_of(dtype_of(t)) - 1);
}

bool overlap(const Placed& a, const Placed& b) {
    return a.first <= b.last && b.first <= a.last && share_memory(a.argument.tensor, b.argument.tensor);
}

[[noreturn]] void refuse_overlap(const Placed& a, const Placed& b, const char* requirement) {
    refuse(a.argument.text() + " overlaps " + b.argument.text() + requirement);
}

}  // namespace

bool same_memory(const foveal_tensor& a, const foveal_tensor& b) {
    if (a.data != b.data || a.dtype != b.dtype || a.rank != b.rank) return false;
    for (int i = 0; i < a.rank; ++i)
        if (stride_or_zero(a, i) != stride_or_zero(b, i)) return false;
    return true;
}

bool share_memory(const foveal_tensor& a, const foveal_tensor& b) {
    if (!has_elements(a) || !has_elements(b)) return false;
    const Wide from_a_to_b =
        static_cast<Wide>(reinterpret_cast<uintptr_t>(b.data)) - reinterpret_cast<uintptr_t>(a.data);
    const Wide reach_a = reach_bytes(a), reach_b = reach_bytes(b);
    if (from_a_to_b > reach_a || from_a_to_b < -reach_b) return false;
    // A byte x of a and y of b coincide iff x = from_a_to_b + y, that is x + (reach_b - y) = from_a_to_b + reach_b; and
    // the bytes reach_b - y are sums of b's strides just as the bytes y are.
    StrideSums sums;
    add_terms(sums, a);
    add_terms(sums, b);
    return sums.contain(from_a_to_b + reach_b);
}

// Every call pays for this.
Placed::Placed(const Argument& a) : argument(a) {
    if (!a.present()) return;
    int64_t reach = 0;
    for (int i = 0; i < a.tensor.rank; ++i) {
        if (a.tensor.shape[i] <= 0) return;
        if (a.tensor.shape[i] > 1) reach += a.tensor.stride[i] * (a.tensor.shape[i] - 1);
    }
    first = reinterpret_cast<uintptr_t>(a.tensor.data);
    const auto element_bytes = static_cast<uintptr_t>(a.element_bytes());
    const uintptr_t behind = static_cast<uintptr_t>(reach) * element_bytes + element_bytes - 1;
    last = first <= UINTPTR_MAX - behind ? first + behind : UINTPTR_MAX;
}

void require_apart(const Placed& written, const Placed& other) {
    if (overlap(written, other)) refuse_overlap(written, other, "; they must lie apart");
}

void require_apart_or_same(const Placed& written, const Placed& read) {
    if (!overlap(written, read) || same_memory(written.argument.tensor, read.argument.tensor)) return;
    refuse_overlap(written, read, " in part; it must be the same tensor or lie apart");
}

}  // namespace foveal
