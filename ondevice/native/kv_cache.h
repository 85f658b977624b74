/* The pool of KV blocks. A block holds OD_KV_BLOCK_TOKENS tokens of all layers and is counted:
 * conversations that share a prefix share its blocks. The engine's lock guards the pool. */
#ifndef OD_KV_CACHE_H
#define OD_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct od_kv_pool {
    uint8_t *data; /* [block_count][block_bytes], paged in when used */
    int64_t block_bytes;
    int32_t block_count;
    int32_t free_count;
    int32_t *free_blocks; /* [free_count], a stack: what was used last is warm */
    int32_t *references;  /* [block_count] */
} od_kv_pool;

bool od_kv_open(od_kv_pool *pool, int32_t block_count, int64_t block_bytes);
void od_kv_close(od_kv_pool *pool);

int32_t od_kv_acquire(od_kv_pool *pool); /* a block with one reference, or -1 */
void od_kv_retain(od_kv_pool *pool, int32_t block);
void od_kv_release(od_kv_pool *pool, int32_t block);

/* The blocks of a conversation, in the order of its tokens. */
typedef struct od_kv_table {
    int32_t *blocks;
    int32_t count;
} od_kv_table;

/* Make the table `count` blocks long by new ones; false, with nothing changed, if too few. */
bool od_kv_grow(od_kv_pool *pool, od_kv_table *table, int32_t count);
void od_kv_shrink(od_kv_pool *pool, od_kv_table *table, int32_t count);
/* Let the empty table `to` share the first `count` blocks of `from`. */
void od_kv_fork(od_kv_pool *pool, const od_kv_table *from, od_kv_table *to, int32_t count);

/* Blocks that hold `tokens` tokens. */
int32_t od_kv_blocks_for(int32_t tokens);

#endif
