/* What this CPU can do, as the feature bits of model.h. */
#include "model.h"
#include "platform.h"

#if defined(__x86_64__)

typedef struct cpuid_result {
    uint32_t eax, ebx, ecx, edx;
} cpuid_result;

static cpuid_result cpuid(uint32_t leaf, uint32_t subleaf) {
    cpuid_result r;
    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "0"(leaf), "2"(subleaf));
    return r;
}

/* Register states that the system saves on a context switch; ymm and zmm are useless without. */
static uint32_t saved_states(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static uint64_t bit(uint32_t word, int position, uint64_t feature) {
    return (word >> position & 1) != 0 ? feature : 0;
}

uint64_t od_cpu_features(void) {
    uint32_t leaves = cpuid(0, 0).eax;
    cpuid_result base = cpuid(1, 0);
    if (leaves < 7 || bit(base.ecx, 27, 1) == 0) return 0; /* no xgetbv */
    uint32_t states = saved_states();
    cpuid_result extended = cpuid(7, 0);
    cpuid_result more = extended.eax >= 1 ? cpuid(7, 1) : (cpuid_result){0, 0, 0, 0};
    uint64_t features = 0;
    if ((states & 0x06) == 0x06)
        features |= bit(base.ecx, 12, OD_CPU_FMA) | bit(base.ecx, 29, OD_CPU_F16C) |
                    bit(extended.ebx, 5, OD_CPU_AVX2) | bit(more.eax, 4, OD_CPU_AVXVNNI);
    if ((states & 0xe6) == 0xe6)
        features |= bit(extended.ebx, 16, OD_CPU_AVX512F) |
                    bit(extended.ebx, 17, OD_CPU_AVX512DQ) |
                    bit(extended.ebx, 30, OD_CPU_AVX512BW) |
                    bit(extended.ebx, 31, OD_CPU_AVX512VL) |
                    bit(extended.ecx, 11, OD_CPU_AVX512VNNI);
    if ((states & 0x600e6) == 0x600e6)
        features |= bit(extended.edx, 24, OD_CPU_AMX_TILE) |
                    bit(extended.edx, 25, OD_CPU_AMX_INT8);
    return features;
}

#elif defined(__aarch64__)

unsigned long getauxval(unsigned long type);

uint64_t od_cpu_features(void) {
    enum { AT_HWCAP = 16, AT_HWCAP2 = 26, HWCAP_ASIMD = 1 << 1, HWCAP_ASIMDHP = 1 << 10,
           HWCAP_ASIMDDP = 1 << 20, HWCAP2_I8MM = 1 << 13 };
    unsigned long first = getauxval(AT_HWCAP);
    unsigned long second = getauxval(AT_HWCAP2);
    uint64_t features = 0;
    if ((first & HWCAP_ASIMD) != 0) features |= OD_CPU_NEON;
    if ((first & HWCAP_ASIMDHP) != 0) features |= OD_CPU_FULLFP16;
    if ((first & HWCAP_ASIMDDP) != 0) features |= OD_CPU_DOTPROD;
    if ((second & HWCAP2_I8MM) != 0) features |= OD_CPU_I8MM;
    return features;
}

#else

uint64_t od_cpu_features(void) { return 0; }

#endif

int64_t od_ticks(void) {
#if defined(__x86_64__)
    return (int64_t)__builtin_ia32_rdtsc();
#else
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return (int64_t)ticks;
#endif
}
