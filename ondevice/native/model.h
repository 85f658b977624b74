/* What a compiled model exports and what a weights file starts with.
 * Printed by `python -m ondevice.bundle.descriptor`; edit the table there. */
#ifndef OD_MODEL_H
#define OD_MODEL_H

#include <stdint.h>

#define OD_FORMAT_VERSION 4
#define OD_KV_BLOCK_TOKENS 32
#define OD_KV_SPAN_TOKENS 256
#define OD_ALIGN_BYTES 64
#define OD_WEIGHTS_MAGIC "ODWEIGHT"
#define OD_WEIGHTS_VERSION 2
#define OD_KV_FILE_MAGIC "ODKVFILE"
#define OD_KV_FILE_VERSION 1

typedef enum od_space {
    OD_SPACE_WEIGHTS = 0,
    OD_SPACE_ARENA = 1,
    OD_SPACE_STEP = 2,
    OD_SPACE_KV = 3,
    OD_SPACE_WORKER = 4,
} od_space;

typedef enum od_step_buffer {
    OD_STEP_TOKENS = 0,
    OD_STEP_POSITIONS = 1,
    OD_STEP_SEQUENCE = 2,
    OD_STEP_BLOCK_TABLE = 3,
    OD_STEP_LOGIT_ROWS = 4,
    OD_STEP_LOGITS = 5,
    OD_STEP_ROPE = 6,
} od_step_buffer;

#define OD_CPU_AVX2 (UINT64_C(1) << 0)
#define OD_CPU_FMA (UINT64_C(1) << 1)
#define OD_CPU_F16C (UINT64_C(1) << 2)
#define OD_CPU_AVX512F (UINT64_C(1) << 3)
#define OD_CPU_AVX512BW (UINT64_C(1) << 4)
#define OD_CPU_AVX512VL (UINT64_C(1) << 5)
#define OD_CPU_AVX512DQ (UINT64_C(1) << 6)
#define OD_CPU_AVX512VNNI (UINT64_C(1) << 7)
#define OD_CPU_AVXVNNI (UINT64_C(1) << 8)
#define OD_CPU_DOTPROD (UINT64_C(1) << 9)
#define OD_CPU_I8MM (UINT64_C(1) << 10)
#define OD_CPU_FULLFP16 (UINT64_C(1) << 11)
#define OD_CPU_NEON (UINT64_C(1) << 12)
#define OD_CPU_AMX_TILE (UINT64_C(1) << 13)
#define OD_CPU_AMX_INT8 (UINT64_C(1) << 14)

/* Runs tasks [begin, end); scratch belongs to the calling worker. */
typedef void (*od_kernel)(void *const *buffers, const int32_t *scalars, int32_t begin,
                          int32_t end, void *scratch);

/* First 64 bytes of a weights file, little-endian. */
typedef struct od_weights_header {
    uint8_t magic[8]; /* ODWEIGHT */
    uint32_t version;
    uint32_t data_start; /* bytes from the start of the header to the data */
    uint8_t abi_hash[32]; /* of the program that these weights are packed for */
    uint64_t data_bytes;
    uint8_t identity[8]; /* differs where the weights' values differ */
} od_weights_header;

/* First 128 bytes of a saved conversation, little-endian. */
typedef struct od_kv_file_header {
    uint8_t magic[8]; /* ODKVFILE */
    uint32_t version;
    uint32_t data_start; /* bytes from the start of the file to the blocks */
    uint8_t abi_hash[32];
    uint8_t identity[8]; /* of the weights */
    uint64_t block_bytes;
    int32_t tokens;
    int32_t blocks;
    uint8_t zero[40];
    uint64_t data_checksum; /* of all that follows the header */
    uint64_t checksum; /* of the header with 0 here */
} od_kv_file_header;

/* mul * ceil((s*S + l*L + b*B + p*P + t*T + constant) / div) */
typedef struct od_extent {
    int32_t s;
    int32_t l;
    int32_t b;
    int32_t p;
    int32_t t;
    int32_t constant;
    int32_t div;
    int32_t mul;
} od_extent;

/* A buffer of a launch. */
typedef struct od_argument {
    int32_t space; /* od_space */
    int32_t index; /* arena slot, or od_step_buffer (rope r is OD_STEP_ROPE + r) */
    int64_t offset; /* bytes from the start of the weights' data or of the slot */
} od_argument;

/* One kernel over a range of tasks, run when min_rows <= rows <= max_rows and T likewise. */
typedef struct od_launch {
    int32_t kernel;
    int32_t first_argument;
    int32_t argument_count;
    int32_t first_scalar; /* of the extents */
    int32_t scalar_count;
    int32_t chunk; /* tasks that a worker claims at once */
    int32_t min_rows;
    int32_t max_rows;
    int32_t min_spans;
    int32_t max_spans;
    int32_t barrier; /* 1: all earlier launches must have finished */
    int32_t tasks; /* index of an extent */
    int32_t rows; /* index of an extent */
    int32_t chained; /* 1: claimed with the launch that runs before it */
    int32_t each; /* 1: run whole by every worker, to the worker's own memory */
} od_launch;

/* Rows of cos[half_dim] then sin[half_dim]; angle = position * inv_freq in float. */
typedef struct od_rope {
    int32_t half_dim;
    int32_t first_inv_freq;
    float scale; /* multiplies cos and sin */
} od_rope;

/* All kernels of the program for one set of CPU features. */
typedef struct od_variant {
    uint64_t features; /* mask of OD_CPU_* bits, all needed */
    const char *name;
    od_kernel const *kernels;
} od_variant;

/* What libmodel exports as od_model_<first 16 hex digits of abi_hash>. */
typedef struct od_model {
    uint32_t format_version;
    uint32_t struct_bytes; /* sizeof(od_model) */
    uint8_t abi_hash[32];
    const char *name;
    int32_t vocab_size;
    int32_t context_tokens;
    int32_t prefill_chunk_tokens; /* largest S of a step */
    int32_t logit_rows; /* largest L of a step */
    int32_t block_table_width;
    int32_t kernel_count;
    int32_t variant_count;
    int32_t launch_count;
    int32_t argument_count;
    int32_t extent_count;
    int32_t slot_count;
    int32_t rope_count;
    int64_t kv_block_bytes; /* 32 tokens of all layers */
    int64_t scratch_bytes; /* per worker, the largest of all kernels */
    int64_t weights_bytes; /* of the data behind the weights header */
    const od_variant *variants; /* best first */
    const od_launch *launches;
    const od_argument *arguments;
    const od_extent *extents;
    const od_extent *slots; /* bytes of each arena slot */
    const od_rope *ropes;
    const float *inv_freq;
} od_model;

#endif
