// Threads that compute one step together, and tapes of what they compute.
//
// A kernel is a function that every thread of a team calls with the same arguments: each does its
// part. `submit` runs a kernel at once, in one parallel region. While a tape is recorded on the
// calling thread, `submit` only notes it; `ek_tape_run` then runs all that was noted in one region,
// with a barrier after each kernel. The number of tokens is the one thing that may differ
// from run to run: kernels read it from their arguments, addresses and widths never change.
#pragma once
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

struct Team {
    int rank, size;
    Barrier& gate;
    std::byte* shared;  // scratch of the whole team, as large as the kernel said it needs

    std::atomic<int64_t>* claims;  // how often `share` was asked for more, in this kernel

    void barrier() {
        if (size > 1) gate.wait(size);
    }

    // Calls work(begin, end) with ranges that are 0..count together: first a large one for each
    // thread, then small ones for whoever is done first, because cores are not equally fast where
    // others use them too; where there are many, these are of `grain`. Every thread calls it with the
    // same count; between two calls in a kernel is a barrier, and `number` counts them from 0.
    template <class Work>
    void share(int64_t count, int64_t number, int64_t grain, Work&& work) {
        if (size == 1) return work(int64_t(0), count);
        if (count < 8 * size) grain = 1;
        const int64_t given = count * 3 / 4 / (grain * size) * (grain * size);
        const Range mine = part_of(given, rank, size, grain);
        if (mine.begin < mine.end) work(mine.begin, mine.end);
        // In each earlier call, each thread asked once more than there was.
        const int64_t grains = ceil_div(count - given, grain), before = number * (grains + size);
        for (;;) {
            const int64_t claim = claims->fetch_add(1, std::memory_order_relaxed) - before;
            if (claim >= grains) return;
            const int64_t begin = given + claim * grain;
            work(begin, begin + grain < count ? begin + grain : count);
        }
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
