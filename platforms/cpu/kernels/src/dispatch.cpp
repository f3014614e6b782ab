// Which instruction set's kernels run.
#include <cstdlib>
#include <string_view>
#include <vector>

#if defined(EK_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace ek {

#define EK_DECLARE(isa)                        \
    namespace isa {                            \
    extern const Kernels table, tiled_table;   \
    }
EK_DECLARE(generic)
EK_DECLARE(avx2)
EK_DECLARE(avx512vnni)
EK_DECLARE(avx512bf16)
EK_DECLARE(avx512bf16_emulated)
EK_DECLARE(neon_dot)
EK_DECLARE(neon_bf16)

namespace {

// Those that the compiler knew, in no order.
const Kernels* const BUILT[] = {
#ifdef EK_HAS_AMX
    &avx512bf16::tiled_table,
#endif
#ifdef EK_HAS_AVX512BF16
    &avx512bf16::table,
#endif
#ifdef EK_HAS_AVX512VNNI
    &avx512vnni::table,
#endif
#ifdef EK_HAS_AVX2
    &avx2::table,
#endif
#ifdef EK_HAS_AVX512BF16_EMULATED
    &avx512bf16_emulated::tiled_table,
    &avx512bf16_emulated::table,
#endif
#ifdef EK_HAS_NEON_BF16
    &neon_bf16::table,
#endif
#ifdef EK_HAS_NEON_DOT
    &neon_dot::table,
#endif
    &generic::table,
};

const Kernels* built(std::string_view isa) {
    for (const Kernels* table : BUILT)
        if (isa == table->isa) return table;
    return nullptr;
}

// Whose it is, and the instruction sets it has. `tests/test_dispatch.py` has the same.
struct Processor {
    bool intel, avx2, avx512vnni, avx512bf16, amx, neon_dot, neon_bf16;
};

#ifdef EK_HAS_AMX
// Linux lets a process use the tile registers once it has asked: a switch of threads then saves 8 KB.
bool may_use_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

Processor this_processor() {
    Processor found{};
#if defined(__x86_64__)
    __builtin_cpu_init();
    found.intel = __builtin_cpu_is("intel");
    found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    found.avx512vnni = found.avx2 && __builtin_cpu_supports("avx512f") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#ifdef EK_HAS_AVX512BF16
    found.avx512bf16 = found.avx512vnni && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef EK_HAS_AMX
    found.amx = found.avx512bf16 && __builtin_cpu_supports("amx-tile") &&
                __builtin_cpu_supports("amx-bf16") && may_use_tiles();
#endif
#elif defined(__aarch64__) && defined(__linux__)
    const unsigned long first = getauxval(AT_HWCAP);
    found.neon_dot = (first & HWCAP_ASIMDDP) && (first & HWCAP_ASIMDHP);
#ifdef EK_HAS_NEON_BF16
    const unsigned long second = getauxval(AT_HWCAP2);
    found.neon_bf16 = found.neon_dot && (second & HWCAP2_I8MM) && (second & HWCAP2_BF16);
#endif
#endif
    return found;
}

struct Choice {
    const Kernels *table, *attention;  // attention is taken from the second
    bool automatic;
};

// What is built and `processor` has, best first.
std::vector<Choice> choices(const Processor& processor) {
    // With pairs of bf16 an Emerald Rapids needs 1.3 to 1.5 times as long for prompts as with floats;
    // other processors of Intel's are taken to be alike. Of AMD's none was measured.
    const bool pairs_are_slow = processor.intel;
    std::vector<Choice> found;
    const auto add = [&](const char* isa, bool present, bool automatic = true) {
        if (const Kernels* table = built(isa); table && present)
            found.push_back({table, table, automatic});
    };
    add("amx", processor.amx);
    // Only linear layers have tiles.
    if (const Kernels* floats = built("avx512vnni"); pairs_are_slow && floats && !found.empty())
        found.back().attention = floats;
    add("avx512bf16", processor.avx512bf16 && !pairs_are_slow);
    add("avx512vnni", processor.avx512vnni);
    add("avx512bf16", processor.avx512bf16 && pairs_are_slow);
    add("avx2", processor.avx2);
    add("amx_emulated", processor.avx512vnni, false);
    add("avx512bf16_emulated", processor.avx512vnni, false);
    add("neon_bf16", processor.neon_bf16);
    add("neon_dot", processor.neon_dot);
    add("generic", true);
    return found;
}

// Of `wanted`, or the best if that is null. No table: `wanted` is not here.
Choice choose(const Processor& processor, const char* wanted) {
    for (const Choice& one : choices(processor))
        if (wanted ? one.table->isa == std::string_view(wanted) : one.automatic) return one;
    return {};
}

Choice choose() { return choose(this_processor(), std::getenv("ENGINE_CPU_ISA")); }

}  // namespace

const Kernels& kernels() {
    static const Kernels chosen = [] {
        const Choice one = choose();
        Kernels mixed = *one.table;
        mixed.attention = one.attention->attention;
        return mixed;
    }();
    return chosen;
}

}  // namespace ek

// The name of the chosen instruction set; null when ENGINE_CPU_ISA names one that is not here.
EK_EXPORT const char* ek_isa() {
    const ek::Kernels* found = ek::choose().table;
    return found ? found->isa : nullptr;
}

// Instruction set `index` of those that this library and this processor have; null past the last.
EK_EXPORT const char* ek_isa_present(int index) {
    const auto present = ek::choices(ek::this_processor());
    return size_t(index) < present.size() ? present[size_t(index)].table->isa : nullptr;
}

// For tests: as ek_isa, of any processor and of `wanted` in place of the variable; or the name of the
// one whose attention runs.
EK_EXPORT const char* ek_isa_on(const ek::Processor* processor, const char* wanted, int attention) {
    const ek::Choice found = ek::choose(*processor, wanted);
    const ek::Kernels* table = attention ? found.attention : found.table;
    return table ? table->isa : nullptr;
}
