// Threads that compute one step together, and tapes of what they compute.
//
// A kernel is a function that every thread of a team calls with the same arguments: each does its
// part. `submit` runs a kernel at once, in one parallel region. While a tape is recorded on the
// calling thread, `submit` only notes it; `ek_tape_run` then runs all that was noted in one region,
// with a barrier after each kernel. The number of tokens is the one thing that may differ
// from run to run: kernels read it from their arguments, addresses and widths never change.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>

#include "common.h"

namespace ek {

class Barrier {
   public:
    void wait(int size);

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

// What is left of one thread's part of some work. The thread takes from its front, others from its end.
class Remainder {
   public:
    // Puts a share of what is left into `taken`: `share` of `of` parts, in pieces of `grain`, but a
    // piece at least; false: there is nothing left. `turn` numbers the works, and `part` is the
    // thread's part of this one: whoever comes first puts it in. Both ends are below 2^20.
    bool take(uint32_t turn, Range part, int64_t share, int64_t of, int64_t grain, bool front,
              Range& taken) {
        constexpr uint64_t END = (1 << 20) - 1, TURN = (1 << 24) - 1;
        uint64_t old = word_.load(std::memory_order_relaxed), next;
        do {
            Range left{int64_t(old >> 20 & END), int64_t(old & END)};
            if (old >> 40 != (turn & TURN)) left = part;
            const int64_t all = left.end - left.begin;
            if (all == 0) return false;
            const int64_t wanted = std::max(all * share / of / grain, int64_t(1)) * grain;
            const int64_t count = std::min(wanted, all);
            int64_t& end = front ? left.begin : left.end;
            end += front ? count : -count;
            taken = front ? Range{end - count, end} : Range{end, end + count};
            next = (turn & TURN) << 40 | uint64_t(left.begin) << 20 | uint64_t(left.end);
        } while (!word_.compare_exchange_weak(old, next, std::memory_order_relaxed));
        return true;
    }

   private:
    alignas(64) std::atomic<uint64_t> word_{0};  // turn, begin and end
};

struct Team {
    int rank, size;
    Barrier& gate;
    std::byte* shared;  // scratch of the whole team, as large as the kernel said it needs
    Remainder* remainders;  // each thread's
    uint32_t turn = 0;      // calls of `share` before this one; 0 is no turn

    void barrier() {
        if (size > 1) gate.wait(size);
    }

    // Calls work(begin, end) with ranges that are 0..count together, in pieces of `grain`: of its own
    // part each thread takes three quarters at once, then half of what is left until nothing is. Then
    // it takes from the ends of other parts, because cores are not equally fast where others use them
    // too. Every thread calls it with the same count; between two calls is a barrier.
    template <class Work>
    void share(int64_t count, int64_t grain, Work&& work) {
        if (size == 1) return work(int64_t(0), count);
        turn++;
        Range taken;
        const auto take = [&](int whose, int64_t share, int64_t of) {
            return remainders[whose].take(turn, part_of(count, whose, size), share, of, grain,
                                          whose == rank, taken);
        };
        if (take(rank, 3, 4)) work(taken.begin, taken.end);
        for (int i = 0; i < size; i++)
            while (take((rank + i) % size, 1, 2)) work(taken.begin, taken.end);
    }

    Range part(int64_t count, int64_t grain = 1) const { return part_of(count, rank, size, grain); }
    // Scratch of this thread, aligned to 64 bytes; what it held before is lost.
    std::byte* own(size_t bytes) const;
};

using Kernel = std::function<void(int64_t tokens, Team&)>;

// `work`: about how many arithmetic operations a token takes; little work stays on one thread.
// `shared_bytes(tokens)`: scratch of the team; does not fall with more tokens.
// Returns 0, or -1 when a tape is recorded for another number of tokens.
int submit(int64_t tokens, double work, Kernel kernel,
           const std::function<size_t(int64_t)>& shared_bytes = nullptr);

// Runs `part` now, also while a tape is recorded: for what is no part of a step.
void at_once(double work, const std::function<void(Team&)>& part);

}  // namespace ek
