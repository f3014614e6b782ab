// Which instruction set's kernels run.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace ek {

#define EK_DECLARE(isa) \
    namespace isa {     \
    extern const Kernels table; \
    }
EK_DECLARE(generic)
EK_DECLARE(avx2)
EK_DECLARE(avx512vnni)
EK_DECLARE(avx512bf16)
EK_DECLARE(avx512bf16_emulated)

namespace {

struct Choice {
    const Kernels* table;
    bool present, automatic;
};

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
    found.push_back(
        {&avx512bf16::table, vnni && __builtin_cpu_supports("avx512bf16"), true});
#endif
#ifdef EK_HAS_AVX512VNNI
    found.push_back({&avx512vnni::table, vnni, true});
#endif
#ifdef EK_HAS_AVX2
    found.push_back({&avx2::table, avx2, true});
#endif
#ifdef EK_HAS_AVX512BF16_EMULATED
    found.push_back({&avx512bf16_emulated::table, vnni, false});
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
