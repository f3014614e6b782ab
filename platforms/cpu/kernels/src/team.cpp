#include "team.h"

#include <omp.h>
#include <sched.h>

#include <cstdlib>
#include <new>
#include <vector>

namespace ek {
namespace {

// Below this a second thread costs more than it brings.
constexpr double SMALL_WORK = 2e4;
// Turns of the waiting loop before the processor is offered to others: some 100 microseconds.
constexpr int SPINS = 4000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Buffer {
   public:
    ~Buffer() { std::free(data_); }
    std::byte* reserve(size_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = size_t(round_up(int64_t(bytes), 4096));
            data_ = static_cast<std::byte*>(std::aligned_alloc(4096, size_));
            if (data_ == nullptr) throw std::bad_alloc();
        }
        return data_;
    }

   private:
    std::byte* data_ = nullptr;
    size_t size_ = 0;
};

struct Step {
    Kernel run;
    double work;
};

}  // namespace

struct Tape {
    int64_t capacity;  // tokens
    size_t shared_bytes = 0;
    std::vector<Step> steps;
};

namespace {

int num_threads = 0;  // 0: as OpenMP was told
thread_local Tape* recording = nullptr;
thread_local Buffer own_scratch;
thread_local Buffer shared_scratch;  // of the thread that submits

int threads() { return num_threads > 0 ? num_threads : omp_get_max_threads(); }

void run(const Step* steps, size_t count, int64_t tokens, size_t shared_bytes) {
    std::byte* shared = shared_bytes ? shared_scratch.reserve(shared_bytes) : nullptr;
    Barrier gate;
    bool large = false;
    for (size_t i = 0; i < count && !large; i++) large = steps[i].work * double(tokens) > SMALL_WORK;
    if (!large || threads() == 1) {
        Team alone{0, 1, gate, shared, nullptr};
        for (size_t i = 0; i < count; i++) steps[i].run(tokens, alone);
        return;
    }
    std::vector<Remainder> remainders = std::vector<Remainder>(size_t(threads()));
#pragma omp parallel num_threads(threads())
    {
        Team all{omp_get_thread_num(), omp_get_num_threads(), gate, shared, remainders.data()};
        Team alone{0, 1, gate, shared, nullptr};
        for (size_t i = 0; i < count; i++) {
            if (steps[i].work * double(tokens) > SMALL_WORK) {
                steps[i].run(tokens, all);
            } else if (all.rank == 0) {
                steps[i].run(tokens, alone);
            }
            // Small kernels in a row need one barrier together: the first thread does them all.
            const bool next_large = i + 1 == count || steps[i + 1].work * double(tokens) > SMALL_WORK;
            if (steps[i].work * double(tokens) > SMALL_WORK || next_large) all.barrier();
        }
    }
}

}  // namespace

void Barrier::wait(int size) {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
        if (spins < SPINS)
            pause();
        else
            sched_yield();
    }
}

std::byte* Team::own(size_t bytes) const { return own_scratch.reserve(bytes); }

int submit(int64_t tokens, double work, Kernel kernel,
           const std::function<size_t(int64_t)>& shared_bytes) {
    if (recording) {
        if (tokens != recording->capacity) return -1;
        const size_t bytes = shared_bytes ? shared_bytes(tokens) : 0;
        if (bytes > recording->shared_bytes) recording->shared_bytes = bytes;
        recording->steps.push_back({std::move(kernel), work});
        return 0;
    }
    const Step step{std::move(kernel), work};
    run(&step, 1, tokens, shared_bytes ? shared_bytes(tokens) : 0);
    return 0;
}

void at_once(double work, const std::function<void(Team&)>& part) {
    const Step step{[&](int64_t, Team& team) { part(team); }, work};
    run(&step, 1, 1, 0);
}

}  // namespace ek

using ek::Tape;

EK_EXPORT void ek_set_threads(int count) { ek::num_threads = count; }
EK_EXPORT int ek_threads() { return ek::threads(); }

EK_EXPORT Tape* ek_tape_new(int64_t capacity) { return new Tape{capacity, 0, {}}; }
// What `tape` has, to be recorded on: for steps of up to `capacity` tokens, no more than the tape's.
EK_EXPORT Tape* ek_tape_extend(const Tape* tape, int64_t capacity) {
    return new Tape{capacity, tape->shared_bytes, tape->steps};
}
EK_EXPORT void ek_tape_free(Tape* tape) { delete tape; }
// From here to `ek_tape_end`, kernels called on this thread are noted, and nothing is computed.
EK_EXPORT void ek_tape_begin(Tape* tape) { ek::recording = tape; }
EK_EXPORT void ek_tape_end() { ek::recording = nullptr; }
EK_EXPORT int64_t ek_tape_length(const Tape* tape) { return int64_t(tape->steps.size()); }
// tokens: 1 to the capacity.
EK_EXPORT void ek_tape_run(const Tape* tape, int64_t tokens) {
    ek::run(tape->steps.data(), tape->steps.size(), tokens, tape->shared_bytes);
}
