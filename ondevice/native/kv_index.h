/* Which KV blocks hold which tokens: a trie of full blocks. A block is known by its own tokens and
 * by the block before it, which is known in the same way, so a chain of hits from the start equals
 * the whole prefix, token by token. A block that is known is never written.
 *
 * Known blocks that no conversation holds are idle: they wait in the order of their last use, to be
 * found again or to be taken. */
#ifndef OD_KV_INDEX_H
#define OD_KV_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "model.h"

#define OD_KV_NONE (-1)

typedef struct od_kv_entry { /* of a block */
    int32_t tokens[OD_KV_BLOCK_TOKENS];
    int32_t parent; /* the block of the tokens before, OD_KV_NONE at the start */
    int32_t next;   /* in the bucket */
    int32_t older;  /* while idle, */
    int32_t newer;  /* a ring through entries[block_count] */
    bool known;
} od_kv_entry;

typedef struct od_kv_index {
    od_kv_entry *entries; /* [block_count + 1] */
    int32_t *buckets;     /* [bucket_count], each the first block + 1, or 0 */
    int32_t block_count;
    int32_t bucket_count; /* a power of two */
    int32_t idle_count;
} od_kv_index;

bool od_kv_index_open(od_kv_index *index, int32_t block_count);
void od_kv_index_close(od_kv_index *index);

/* The known block of these 32 tokens behind `parent`, or OD_KV_NONE. */
int32_t od_kv_index_find(const od_kv_index *index, int32_t parent, const int32_t *tokens);
/* Make a block known; no equal one may be. */
void od_kv_index_add(od_kv_index *index, int32_t block, int32_t parent, const int32_t *tokens);
/* Forget a block that nothing known hangs from. */
void od_kv_index_remove(od_kv_index *index, int32_t block);

/* A known block has lost its last holder, or found one again. Whoever holds a block holds those
 * before it, and a table lets go of its last block first: so in the ring every block is older than
 * those it hangs from, and taking the oldest never leaves others hanging. */
void od_kv_index_rest(od_kv_index *index, int32_t block);
void od_kv_index_wake(od_kv_index *index, int32_t block);
/* Forget the oldest idle block and return it; OD_KV_NONE if none is idle. */
int32_t od_kv_index_evict(od_kv_index *index);

#endif
