/* The pool of KV blocks. A block holds OD_KV_BLOCK_TOKENS tokens of all layers and is counted:
 * conversations that share a prefix share its blocks. The engine's lock guards the pool.
 *
 * A block is free, held (by conversations, each a reference) or idle (known to the index, so worth
 * keeping, but held by nobody). What is idle is taken, oldest first, when nothing is free. */
#ifndef OD_KV_CACHE_H
#define OD_KV_CACHE_H

#include "kv_index.h"

typedef struct od_kv_pool {
    uint8_t *data; /* [block_count][block_bytes], paged in when used */
    int64_t block_bytes;
    int32_t block_count;
    int32_t free_count;
    int32_t *free_blocks; /* [free_count], a stack: what was used last is warm */
    int32_t *references;  /* [block_count] */
    od_kv_index index;
} od_kv_pool;

bool od_kv_open(od_kv_pool *pool, int32_t block_count, int64_t block_bytes);
void od_kv_close(od_kv_pool *pool);

int32_t od_kv_available(const od_kv_pool *pool); /* blocks that od_kv_acquire can give */
int32_t od_kv_acquire(od_kv_pool *pool);         /* a block with one reference, or OD_KV_NONE */
void od_kv_retain(od_kv_pool *pool, int32_t block);
void od_kv_release(od_kv_pool *pool, int32_t block);

/* The blocks of a conversation, in the order of its tokens. All that are full of computed tokens
 * are known to the index. */
typedef struct od_kv_table {
    int32_t *blocks;
    int32_t count;
} od_kv_table;

/* Make the table `count` blocks long by new ones; false, with nothing changed, if too few. */
bool od_kv_grow(od_kv_pool *pool, od_kv_table *table, int32_t count);
void od_kv_shrink(od_kv_pool *pool, od_kv_table *table, int32_t count);
/* Let the empty table `to` share the first `count` blocks of `from`. */
void od_kv_fork(od_kv_pool *pool, const od_kv_table *from, od_kv_table *to, int32_t count);

/* ---- sharing; `tokens` are all tokens of the conversation ---- */

typedef struct od_kv_found {
    int32_t count; /* known blocks that could stand at first, first + 1, ... */
    int32_t cost;  /* by how much adopting them lowers od_kv_available */
} od_kv_found;

/* Look for known blocks from place `first` of the table up to `end`. */
od_kv_found od_kv_find(const od_kv_pool *pool, const od_kv_table *table, const int32_t *tokens,
                       int32_t first, int32_t end);
/* Let the table hold the `count` blocks found from `first` on, instead of what it had there. */
void od_kv_adopt(od_kv_pool *pool, od_kv_table *table, const int32_t *tokens, int32_t first,
                 int32_t count);
/* The block at `place` has been filled: make it known, or hold the known one that is equal. */
void od_kv_publish(od_kv_pool *pool, od_kv_table *table, const int32_t *tokens, int32_t place);

/* Whether a write to the block would be seen by nobody else. */
bool od_kv_is_own(const od_kv_pool *pool, int32_t block);
/* Make the block at `place` the table's own: a copy, unless it is. Without an available block one
 * reference is enough, then the index forgets the block; false if there are more. */
bool od_kv_own(od_kv_pool *pool, od_kv_table *table, int32_t place);

/* Blocks that hold `tokens` tokens. */
int32_t od_kv_blocks_for(int32_t tokens);

#endif
