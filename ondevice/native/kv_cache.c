#include "kv_cache.h"

#include "model.h"
#include "platform.h"

static size_t list_bytes(int32_t block_count) { return (size_t)block_count * sizeof(int32_t); }

bool od_kv_open(od_kv_pool *pool, int32_t block_count, int64_t block_bytes) {
    *pool = (od_kv_pool){.block_bytes = block_bytes, .block_count = block_count};
    pool->data = od_reserve((size_t)block_count * (size_t)block_bytes);
    pool->free_blocks = od_reserve(list_bytes(block_count));
    pool->references = od_reserve(list_bytes(block_count));
    if (pool->data == NULL || pool->free_blocks == NULL || pool->references == NULL) {
        od_kv_close(pool);
        return false;
    }
    for (int32_t block = block_count - 1; block >= 0; block--)
        pool->free_blocks[pool->free_count++] = block; /* so block 0 is taken first */
    return true;
}

void od_kv_close(od_kv_pool *pool) {
    od_release(pool->data, (size_t)pool->block_count * (size_t)pool->block_bytes);
    od_release(pool->free_blocks, list_bytes(pool->block_count));
    od_release(pool->references, list_bytes(pool->block_count));
    *pool = (od_kv_pool){.data = NULL};
}

int32_t od_kv_acquire(od_kv_pool *pool) {
    if (pool->free_count == 0) return -1;
    int32_t block = pool->free_blocks[--pool->free_count];
    pool->references[block] = 1;
    return block;
}

void od_kv_retain(od_kv_pool *pool, int32_t block) { pool->references[block]++; }

void od_kv_release(od_kv_pool *pool, int32_t block) {
    if (--pool->references[block] == 0) pool->free_blocks[pool->free_count++] = block;
}

bool od_kv_grow(od_kv_pool *pool, od_kv_table *table, int32_t count) {
    if (count - table->count > pool->free_count) return false;
    while (table->count < count) table->blocks[table->count++] = od_kv_acquire(pool);
    return true;
}

void od_kv_shrink(od_kv_pool *pool, od_kv_table *table, int32_t count) {
    while (table->count > count) od_kv_release(pool, table->blocks[--table->count]);
}

void od_kv_fork(od_kv_pool *pool, const od_kv_table *from, od_kv_table *to, int32_t count) {
    for (; to->count < count; to->count++) {
        to->blocks[to->count] = from->blocks[to->count];
        od_kv_retain(pool, to->blocks[to->count]);
    }
}

int32_t od_kv_blocks_for(int32_t tokens) {
    return tokens / OD_KV_BLOCK_TOKENS + (tokens % OD_KV_BLOCK_TOKENS != 0);
}
