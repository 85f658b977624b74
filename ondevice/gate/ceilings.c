// What this machine can do at most: bytes read and 8-bit products summed, by 1 or more threads.
// ceilings CPU[,CPU...]   prints a JSON object; each figure is the best of several short runs.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define KEEP(a, b) __asm__ volatile("" : "+x"(a), "+x"(b))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define KEEP(a, b) __asm__ volatile("" : "+w"(a), "+w"(b))
#endif

enum { MAX_THREADS = 64, RUNS = 5, CHAINS = 12 };

typedef struct {
    int cpu;
    const uint64_t *data;
    size_t words;   // of `data`, 0: multiply instead
    long rounds;    // passes over `data`, or steps of the multiplication
    int matrices;   // multiply with the matrix unit
    uint64_t sum;   // keeps the work from being removed
    double ops;     // multiplications and additions done
    double began_s, ended_s;
} Work;

static pthread_barrier_t together;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t read_all(const uint64_t *data, size_t words) {
    typedef uint64_t Lanes __attribute__((vector_size(64)));
    const Lanes *from = (const Lanes *)data;
    Lanes sums[8] = {0};
    for (size_t i = 0; i < words / 8; i += 8)
        for (int j = 0; j < 8; j++)
            sums[j] += from[i + (size_t)j];
    for (int j = 1; j < 8; j++)
        sums[0] += sums[j];
    uint64_t sum = 0;
    for (int j = 0; j < 8; j++)
        sum += sums[0][j];
    return sum;
}

// Independent chains of the widest instruction that multiplies 8-bit integers and sums to 32 bits.
#if defined(__AVX512VNNI__)
#define INSTRUCTION "AVX-512 VNNI"
#define LANE_PRODUCTS 64
typedef __m512i Sum;
#define STEP(s) s = _mm512_dpbusd_epi32(s, a, b)
#define OPERANDS __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2)
#elif defined(__AVXVNNI__)
#define INSTRUCTION "AVX-VNNI"
#define LANE_PRODUCTS 32
typedef __m256i Sum;
#define STEP(s) s = _mm256_dpbusd_avx_epi32(s, a, b)
#define OPERANDS __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2)
#elif defined(__AVX2__)
#define INSTRUCTION "AVX2"
#define LANE_PRODUCTS 32
typedef __m256i Sum;
#define STEP(s) s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), c))
#define OPERANDS __m256i a = _mm256_set1_epi8(1), b = a, c = _mm256_set1_epi16(1)
#elif defined(__ARM_FEATURE_DOTPROD)
#define INSTRUCTION "dotprod"
#define LANE_PRODUCTS 16
typedef int32x4_t Sum;
#define STEP(s) s = vdotq_s32(s, a, b)
#define OPERANDS int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(2)
#else
#define INSTRUCTION "none"
#endif

static void multiply(Work *work) {
#ifdef LANE_PRODUCTS
    OPERANDS;
    Sum sums[CHAINS];
    memset(sums, 0, sizeof sums);
    for (long i = 0; i < work->rounds; i++) {
        KEEP(a, b); // or the compiler would see that every step is the same
        for (int j = 0; j < CHAINS; j++)
            STEP(sums[j]);
    }
    for (int j = 0; j < CHAINS; j++) {
        uint64_t low;
        memcpy(&low, &sums[j], sizeof low);
        work->sum += low;
    }
    work->ops = 2.0 * LANE_PRODUCTS * CHAINS * (double)work->rounds;
#else
    (void)work;
#endif
}

// The same on the matrix unit: 16 x 64 by 64 x 16 products into each of four tiles.
#if defined(__AMX_INT8__) && defined(__linux__)
#define MATRIX_INSTRUCTION "AMX"
static int matrices_permitted(void) {
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0; // ARCH_REQ_XCOMP_PERM, tile data
}

static void multiply_matrices(Work *work) {
    static const _Alignas(64) int8_t ones[16 * 64] = {1};
    _Alignas(64) uint8_t shape[64] = {1};
    for (int i = 0; i < 6; i++) {
        shape[16 + 2 * i] = 64; // bytes of a row
        shape[48 + i] = 16;     // rows
    }
    _tile_loadconfig(shape);
    _tile_loadd(4, ones, 64);
    _tile_loadd(5, ones, 64);
    for (long i = 0; i < work->rounds; i++) {
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 5);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 5);
    }
    _tile_release();
    work->ops = 2.0 * 16 * 16 * 64 * 4 * (double)work->rounds;
}
#else
#define MATRIX_INSTRUCTION "none"
static int matrices_permitted(void) { return 0; }
static void multiply_matrices(Work *work) { (void)work; }
#endif

static void *run(void *argument) {
    Work *work = argument;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(work->cpu, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    pthread_barrier_wait(&together);
    work->began_s = seconds();
    if (work->words == 0 && work->matrices)
        multiply_matrices(work);
    else if (work->words == 0)
        multiply(work);
    else
        for (long i = 0; i < work->rounds; i++)
            work->sum += read_all(work->data, work->words);
    work->ended_s = seconds();
    return 0;
}

// The shortest of several runs, in seconds from the first start to the last end.
static double best(Work *works, int threads) {
    double shortest = 1e9;
    for (int i = 0; i < RUNS; i++) {
        pthread_t ids[MAX_THREADS];
        double began = 1e18, ended = 0;
        pthread_barrier_init(&together, 0, (unsigned)threads);
        for (int t = 0; t < threads; t++)
            pthread_create(&ids[t], 0, run, &works[t]);
        for (int t = 0; t < threads; t++) {
            pthread_join(ids[t], 0);
            began = works[t].began_s < began ? works[t].began_s : began;
            ended = works[t].ended_s > ended ? works[t].ended_s : ended;
        }
        pthread_barrier_destroy(&together);
        shortest = ended - began < shortest ? ended - began : shortest;
    }
    return shortest;
}

static double read_gb_per_s(Work *works, int threads, size_t bytes_each, long rounds) {
    for (int t = 0; t < threads; t++) {
        works[t].words = bytes_each / 8;
        works[t].rounds = rounds;
    }
    return (double)bytes_each * (double)rounds * threads / best(works, threads) / 1e9;
}

static double multiply_gop_per_s(Work *works, int threads, int matrices) {
    double ops = 0;
    for (int t = 0; t < threads; t++) {
        works[t].words = 0;
        works[t].rounds = matrices ? 400000 : 4000000;
        works[t].matrices = matrices;
    }
    double elapsed = best(works, threads);
    for (int t = 0; t < threads; t++)
        ops += works[t].ops;
    return ops / elapsed / 1e9;
}

int main(int count, char **arguments) {
    enum { BIG = 256 << 20, CACHED = 8 << 20 };
    Work works[MAX_THREADS] = {0};
    int threads = 0;
    if (count != 2)
        return 2;
    for (char *at = strtok(arguments[1], ","); at && threads < MAX_THREADS; at = strtok(0, ","))
        works[threads++].cpu = atoi(at);
    for (int t = 0; t < threads; t++) {
        void *data = aligned_alloc(4096, BIG);
        if (!data)
            return 1;
        memset(data, t + 1, BIG);
        works[t].data = data;
    }
    printf("{\"threads\": %d, \"instruction\": \"%s\"", threads, INSTRUCTION);
    printf(", \"dram_gb_per_s\": %.1f", read_gb_per_s(works, threads, BIG, 1));
    printf(", \"cached_gb_per_s\": %.1f", read_gb_per_s(works, threads, CACHED, 16));
    printf(", \"int8_gop_per_s\": %.0f", multiply_gop_per_s(works, threads, 0));
    int permitted = matrices_permitted();
    printf(", \"matrix_instruction\": \"%s\"", permitted ? MATRIX_INSTRUCTION : "none");
    printf(", \"matrix_gop_per_s\": %.0f}\n",
           permitted ? multiply_gop_per_s(works, threads, 1) : 0.0);
    return 0;
}
