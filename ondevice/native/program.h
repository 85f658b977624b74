/* A model's launch table, ready to run: buffers reserved, kernels of this CPU chosen. */
#ifndef OD_PROGRAM_H
#define OD_PROGRAM_H

#include "message.h"
#include "model.h"
#include "threads.h"

/* The symbols that sizes depend on. */
typedef struct od_sizes {
    int32_t s; /* query tokens */
    int32_t l; /* rows whose logits are wanted */
    int32_t b; /* rows of the block table */
    int32_t p; /* blocks of the KV pool */
    int32_t t; /* spans of cached positions that the deepest query token sees */
} od_sizes;

typedef struct od_region {
    void *data;
    size_t bytes;
} od_region;

typedef struct od_program {
    const od_model *model;
    const od_variant *variant;
    const uint8_t *weights;
    uint8_t *kv;
    od_sizes largest;
    od_region arena;
    od_region *step; /* [OD_STEP_ROPE + rope_count], see od_step_buffer */
    od_region tables; /* what the pointers below (and step) lie in */
    /* The plan: the launches that run at the sizes `planned`, with their buffers and scalars. */
    od_sizes planned;
    od_work *work;
    int32_t work_count;
    void **buffers;   /* [argument_count] */
    int32_t *scalars; /* [extent_count] */
    int64_t *slots;   /* [slot_count], offsets in the arena */
} od_program;

/* Choose the first variant this CPU supports, or the one called `name`. */
od_status od_program_choose(const od_model *model, const char *name, const od_variant **variant,
                            od_error *error);

/* Reserve everything for steps of up to `sequences` conversations over `kv_blocks` blocks at `kv`.
 * `variant` comes from od_program_choose. After a failure od_program_close may be called. */
od_status od_program_open(od_program *program, const od_model *model, const od_variant *variant,
                          const uint8_t *weights, uint8_t *kv, int32_t kv_blocks,
                          int32_t sequences, od_error *error);
void od_program_close(od_program *program);

/* Run one step; the step buffers have been filled, LOGITS holds the answer afterwards. */
void od_program_run(od_program *program, od_threads *threads, int32_t s, int32_t l, int32_t b);

int64_t od_extent_evaluate(const od_extent *extent, const od_sizes *sizes);

#endif
