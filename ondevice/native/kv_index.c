#include "kv_index.h"

#include "platform.h"

static size_t entries_bytes(const od_kv_index *index) {
    return ((size_t)index->block_count + 1) * sizeof(od_kv_entry);
}

static size_t buckets_bytes(const od_kv_index *index) {
    return (size_t)index->bucket_count * sizeof(int32_t);
}

bool od_kv_index_open(od_kv_index *index, int32_t block_count) {
    *index = (od_kv_index){.block_count = block_count, .bucket_count = 1};
    while (index->bucket_count < block_count && index->bucket_count < 1 << 30)
        index->bucket_count *= 2;
    index->entries = od_reserve(entries_bytes(index));
    index->buckets = od_reserve(buckets_bytes(index));
    if (index->entries == NULL || index->buckets == NULL) {
        od_kv_index_close(index);
        return false;
    }
    index->entries[block_count].older = index->entries[block_count].newer = block_count;
    return true;
}

void od_kv_index_close(od_kv_index *index) {
    od_release(index->entries, entries_bytes(index));
    od_release(index->buckets, buckets_bytes(index));
    *index = (od_kv_index){.entries = NULL};
}

/* ---- the trie ---- */

static int32_t *bucket_of(const od_kv_index *index, int32_t parent, const int32_t *tokens) {
    uint64_t hash = (uint32_t)parent;
    for (int32_t i = 0; i < OD_KV_BLOCK_TOKENS; i++)
        hash = (hash ^ (uint32_t)tokens[i]) * UINT64_C(0x9e3779b97f4a7c15);
    hash ^= hash >> 32;
    return &index->buckets[hash & (uint64_t)(index->bucket_count - 1)];
}

static bool is(const od_kv_entry *entry, int32_t parent, const int32_t *tokens) {
    return entry->parent == parent && memcmp(entry->tokens, tokens, sizeof entry->tokens) == 0;
}

int32_t od_kv_index_find(const od_kv_index *index, int32_t parent, const int32_t *tokens) {
    int32_t block = *bucket_of(index, parent, tokens) - 1;
    while (block >= 0 && !is(&index->entries[block], parent, tokens))
        block = index->entries[block].next;
    return block;
}

void od_kv_index_add(od_kv_index *index, int32_t block, int32_t parent, const int32_t *tokens) {
    od_kv_entry *entry = &index->entries[block];
    int32_t *bucket = bucket_of(index, parent, tokens);
    memcpy(entry->tokens, tokens, sizeof entry->tokens);
    entry->parent = parent;
    entry->next = *bucket - 1;
    entry->known = true;
    *bucket = block + 1;
}

void od_kv_index_remove(od_kv_index *index, int32_t block) {
    od_kv_entry *entry = &index->entries[block];
    int32_t *bucket = bucket_of(index, entry->parent, entry->tokens);
    entry->known = false;
    if (*bucket == block + 1) {
        *bucket = entry->next + 1;
        return;
    }
    od_kv_entry *before = &index->entries[*bucket - 1];
    while (before->next != block) before = &index->entries[before->next];
    before->next = entry->next;
}

/* ---- idle blocks ---- */

void od_kv_index_rest(od_kv_index *index, int32_t block) {
    od_kv_entry *end = &index->entries[index->block_count], *entry = &index->entries[block];
    entry->newer = index->block_count;
    entry->older = end->older;
    index->entries[entry->older].newer = end->older = block;
    index->idle_count++;
}

void od_kv_index_wake(od_kv_index *index, int32_t block) {
    od_kv_entry *entry = &index->entries[block];
    index->entries[entry->older].newer = entry->newer;
    index->entries[entry->newer].older = entry->older;
    index->idle_count--;
}

int32_t od_kv_index_evict(od_kv_index *index) {
    if (index->idle_count == 0) return OD_KV_NONE;
    int32_t block = index->entries[index->block_count].newer;
    od_kv_index_wake(index, block);
    od_kv_index_remove(index, block);
    return block;
}
