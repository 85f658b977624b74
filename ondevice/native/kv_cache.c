#include "kv_cache.h"

#include "platform.h"

static size_t list_bytes(int32_t block_count) { return (size_t)block_count * sizeof(int32_t); }

bool od_kv_open(od_kv_pool *pool, int32_t block_count, int64_t block_bytes) {
    *pool = (od_kv_pool){.block_bytes = block_bytes, .block_count = block_count};
    pool->data = od_reserve((size_t)block_count * (size_t)block_bytes);
    pool->free_blocks = od_reserve(list_bytes(block_count));
    pool->references = od_reserve(list_bytes(block_count));
    if (pool->data == NULL || pool->free_blocks == NULL || pool->references == NULL ||
        !od_kv_index_open(&pool->index, block_count)) {
        od_kv_close(pool);
        return false;
    }
    for (int32_t block = block_count - 1; block >= 0; block--)
        pool->free_blocks[pool->free_count++] = block; /* so block 0 is taken first */
    return true;
}

void od_kv_close(od_kv_pool *pool) {
    od_kv_index_close(&pool->index);
    od_release(pool->data, (size_t)pool->block_count * (size_t)pool->block_bytes);
    od_release(pool->free_blocks, list_bytes(pool->block_count));
    od_release(pool->references, list_bytes(pool->block_count));
    *pool = (od_kv_pool){.data = NULL};
}

/* ---- blocks ---- */

static bool is_known(const od_kv_pool *pool, int32_t block) {
    return pool->index.entries[block].known;
}

int32_t od_kv_available(const od_kv_pool *pool) {
    return pool->free_count + pool->index.idle_count;
}

int32_t od_kv_acquire(od_kv_pool *pool) {
    int32_t block = pool->free_count > 0 ? pool->free_blocks[--pool->free_count]
                                         : od_kv_index_evict(&pool->index);
    if (block != OD_KV_NONE) pool->references[block] = 1;
    return block;
}

void od_kv_retain(od_kv_pool *pool, int32_t block) {
    if (pool->references[block]++ == 0) od_kv_index_wake(&pool->index, block);
}

void od_kv_release(od_kv_pool *pool, int32_t block) {
    if (--pool->references[block] > 0) return;
    if (is_known(pool, block))
        od_kv_index_rest(&pool->index, block);
    else
        pool->free_blocks[pool->free_count++] = block;
}

/* ---- tables ---- */

bool od_kv_grow(od_kv_pool *pool, od_kv_table *table, int32_t count) {
    if (count - table->count > od_kv_available(pool)) return false;
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

/* ---- sharing ---- */

/* The known block for `place` behind the block `parent`. */
static int32_t find(const od_kv_pool *pool, int32_t parent, const int32_t *tokens, int32_t place) {
    return od_kv_index_find(&pool->index, parent, tokens + place * OD_KV_BLOCK_TOKENS);
}

static int32_t parent_of(const od_kv_table *table, int32_t place) {
    return place > 0 ? table->blocks[place - 1] : OD_KV_NONE;
}

od_kv_found od_kv_find(const od_kv_pool *pool, const od_kv_table *table, const int32_t *tokens,
                       int32_t first, int32_t end) {
    od_kv_found found = {0, 0};
    int32_t block = parent_of(table, first);
    for (int32_t place = first; place < end; place++) {
        block = find(pool, block, tokens, place);
        if (block == OD_KV_NONE) break;
        found.count++;
        found.cost += pool->references[block] == 0;
        if (place < table->count && table->blocks[place] != block)
            found.cost -= pool->references[table->blocks[place]] == 1;
    }
    return found;
}

/* The new block is retained first: it may be the old one. */
static void put(od_kv_pool *pool, od_kv_table *table, int32_t place, int32_t block) {
    od_kv_retain(pool, block);
    if (place < table->count)
        od_kv_release(pool, table->blocks[place]);
    else
        table->count++;
    table->blocks[place] = block;
}

void od_kv_adopt(od_kv_pool *pool, od_kv_table *table, const int32_t *tokens, int32_t first,
                 int32_t count) {
    for (int32_t place = first; place < first + count; place++)
        put(pool, table, place, find(pool, parent_of(table, place), tokens, place));
}

void od_kv_publish(od_kv_pool *pool, od_kv_table *table, const int32_t *tokens, int32_t place) {
    int32_t parent = parent_of(table, place), known = find(pool, parent, tokens, place);
    if (known != OD_KV_NONE)
        put(pool, table, place, known);
    else
        od_kv_index_add(&pool->index, table->blocks[place], parent,
                        tokens + place * OD_KV_BLOCK_TOKENS);
}

bool od_kv_is_own(const od_kv_pool *pool, int32_t block) {
    return pool->references[block] == 1 && !is_known(pool, block);
}

bool od_kv_own(od_kv_pool *pool, od_kv_table *table, int32_t place) {
    int32_t shared = table->blocks[place];
    if (od_kv_is_own(pool, shared)) return true;
    int32_t copy = od_kv_acquire(pool);
    if (copy != OD_KV_NONE) {
        size_t bytes = (size_t)pool->block_bytes;
        memcpy(pool->data + (size_t)copy * bytes, pool->data + (size_t)shared * bytes, bytes);
        od_kv_release(pool, shared);
        table->blocks[place] = copy;
        return true;
    }
    if (pool->references[shared] > 1) return false;
    od_kv_index_remove(&pool->index, shared); /* nothing is idle, so nothing hangs from it */
    return true;
}
