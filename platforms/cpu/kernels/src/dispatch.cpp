// Which instruction set's kernels run.
#include <cstdlib>
#include <cstring>
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

struct Choice {
    const Kernels* table;
    bool present, automatic;
};

#ifdef EK_HAS_AMX
// Linux lets a process use the tile registers once it has asked: a switch of threads then saves 8 KB.
bool may_use_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;  // asm/prctl.h, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

#ifdef __x86_64__
// With pairs of bf16 an Emerald Rapids needs 1.3 to 1.5 times as long for prompts as with floats; other
// processors of Intel's are taken to be alike. Of AMD's none was measured.
[[maybe_unused]] bool pairs_are_slow() { return __builtin_cpu_is("intel"); }
#endif

#if defined(EK_HAS_AMX) && defined(EK_HAS_AVX512VNNI)
// Only linear layers have tiles.
const Kernels& tiles_and_floats() {
    static const Kernels table = [] {
        Kernels mixed = avx512bf16::tiled_table;
        mixed.attention = avx512vnni::table.attention;
        return mixed;
    }();
    return table;
}
#endif

// Best first.
std::vector<Choice> choices() {
    std::vector<Choice> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    [[maybe_unused]] const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    [[maybe_unused]] const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#ifdef EK_HAS_AVX512BF16
    const bool pairs = vnni && __builtin_cpu_supports("avx512bf16");
#ifdef EK_HAS_AMX
    const bool tiles = pairs && __builtin_cpu_supports("amx-tile") &&
                       __builtin_cpu_supports("amx-bf16") && may_use_tiles();
#ifdef EK_HAS_AVX512VNNI
    found.push_back({pairs_are_slow() ? &tiles_and_floats() : &avx512bf16::tiled_table, tiles, true});
#else
    found.push_back({&avx512bf16::tiled_table, tiles, true});
#endif
#endif
    if (!pairs_are_slow()) found.push_back({&avx512bf16::table, pairs, true});
#endif
#ifdef EK_HAS_AVX512VNNI
    found.push_back({&avx512vnni::table, vnni, true});
#endif
#ifdef EK_HAS_AVX512BF16
    if (pairs_are_slow()) found.push_back({&avx512bf16::table, pairs, true});
#endif
#ifdef EK_HAS_AVX2
    found.push_back({&avx2::table, avx2, true});
#endif
#ifdef EK_HAS_AVX512BF16_EMULATED
    found.push_back({&avx512bf16_emulated::tiled_table, vnni, false});
    found.push_back({&avx512bf16_emulated::table, vnni, false});
#endif
#elif defined(__aarch64__) && defined(__linux__)
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    [[maybe_unused]] const bool dot = (first & HWCAP_ASIMDDP) && (first & HWCAP_ASIMDHP);
#ifdef EK_HAS_NEON_BF16
    const bool pairs = dot && (second & HWCAP2_I8MM) && (second & HWCAP2_BF16);
    found.push_back({&neon_bf16::table, pairs, true});
#endif
#ifdef EK_HAS_NEON_DOT
    found.push_back({&neon_dot::table, dot, true});
#endif
#endif
    found.push_back({&generic::table, true, true});
    return found;
}

const Kernels* choose() {
    const char* wanted = std::getenv("ENGINE_CPU_ISA");
    for (const Choice& one : choices())
        if (one.present && (wanted ? std::strcmp(wanted, one.table->isa) == 0 : one.automatic))
            return one.table;
    return nullptr;
}

}  // namespace

const Kernels& kernels() {
    static const Kernels* chosen = choose();
    return *chosen;
}

}  // namespace ek

// The name of the chosen instruction set; null when ENGINE_CPU_ISA names one that is not here.
EK_EXPORT const char* ek_isa() {
    const ek::Kernels* found = ek::choose();
    return found ? found->isa : nullptr;
}

// Instruction set `index` of those that this library and this processor have; null past the last.
EK_EXPORT const char* ek_isa_present(int index) {
    for (const ek::Choice& one : ek::choices())
        if (one.present && index-- == 0) return one.table->isa;
    return nullptr;
}
