/* A conversation in a file: its tokens, and the KV blocks that are full of them.
 *
 *     header      od_kv_file_header
 *     tokens      int32 each, then zeros up to a multiple of 64 KiB
 *     blocks      as they lie in the pool, from the first token on
 *
 * The tokens behind the last full block are computed again, so a file depends on the model and the
 * tokens alone, and nothing else that a block once held gets out. */
#include "engine.h"

/* The largest page in use: where blocks lie on whole pages they are mapped. */
#define PAGE_BYTES 65536

typedef od_kv_file_header file_header;

static int64_t data_start(int32_t tokens) {
    int64_t bytes = (int64_t)sizeof(file_header) + (int64_t)tokens * (int64_t)sizeof(int32_t);
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* ---- checksum ---- */

enum { LANES = 8, STRIPE = LANES * 8 };

typedef struct checksum {
    uint64_t lanes[LANES];
} checksum;

static uint64_t fold(uint64_t lane, uint64_t word) {
    lane ^= word; /* invertible, so a single changed word is always seen */
    return (lane << 29 | lane >> 35) * UINT64_C(0x9e3779b97f4a7c15);
}

static void add_stripe(checksum *sum, const uint8_t *data) {
    uint64_t words[LANES];
    memcpy(words, data, sizeof words);
    for (int32_t i = 0; i < LANES; i++) sum->lanes[i] = fold(sum->lanes[i], words[i]);
}

/* As fast as memory is read: a file of 50 MB must not be felt. */
static void add_bytes(checksum *sum, const uint8_t *data, int64_t bytes) {
    int64_t at = 0;
    for (; at + STRIPE <= bytes; at += STRIPE) add_stripe(sum, data + at);
    if (at == bytes) return;
    uint8_t rest[STRIPE] = {0};
    memcpy(rest, data + at, (size_t)(bytes - at));
    add_stripe(sum, rest);
}

static uint64_t finish(const checksum *sum) {
    uint64_t all = 0;
    for (int32_t i = 0; i < LANES; i++) all = fold(all, sum->lanes[i]);
    return all ^ all >> 32;
}

static uint64_t checksum_of(file_header header) {
    checksum sum = {{0}};
    header.checksum = 0;
    add_bytes(&sum, (const uint8_t *)&header, sizeof header);
    return finish(&sum);
}

/* ---- save ---- */

/* What is written: `head` are header and tokens, the blocks are held by `table`. */
typedef struct snapshot {
    uint8_t *head;
    int64_t head_bytes;
    int32_t *list;
    size_t list_bytes;
    od_kv_table table;
} snapshot;

static file_header header_of(const od_core *engine, int32_t tokens, int32_t blocks) {
    const od_model *model = engine->model;
    file_header header = {
        .version = OD_KV_FILE_VERSION,
        .data_start = (uint32_t)data_start(tokens),
        .block_bytes = (uint64_t)model->kv_block_bytes,
        .tokens = tokens,
        .blocks = blocks,
    };
    memcpy(header.magic, OD_KV_FILE_MAGIC, sizeof header.magic);
    memcpy(header.abi_hash, model->abi_hash, sizeof header.abi_hash);
    memcpy(header.identity, engine->weights.identity, sizeof header.identity);
    return header;
}

static bool take_snapshot(od_core *engine, const od_state *state, snapshot *of) {
    int32_t blocks = state->computed / OD_KV_BLOCK_TOKENS;
    *of = (snapshot){.head_bytes = data_start(state->length)};
    of->list_bytes = ((size_t)blocks + 1) * sizeof(int32_t);
    of->head = od_reserve((size_t)of->head_bytes);
    of->list = of->table.blocks = od_reserve(of->list_bytes);
    if (of->head == NULL || of->list == NULL) return false;
    file_header header = header_of(engine, state->length, blocks);
    memcpy(of->head, &header, sizeof header);
    if (state->length > 0)
        memcpy(of->head + sizeof header, state->tokens, (size_t)state->length * sizeof(int32_t));
    od_kv_fork(&engine->kv, &state->table, &of->table, blocks);
    return true;
}

static void free_snapshot(od_core *engine, snapshot *of) {
    if (of->list != NULL) od_kv_shrink(&engine->kv, &of->table, 0);
    od_release(of->list, of->list_bytes);
    od_release(of->head, (size_t)of->head_bytes);
}

static const uint8_t *block_data(const od_core *engine, int32_t block) {
    return engine->kv.data + (size_t)block * (size_t)engine->kv.block_bytes;
}

static bool write_snapshot(const od_core *engine, snapshot *of, int fd) {
    int64_t block_bytes = engine->kv.block_bytes;
    file_header header;
    memcpy(&header, of->head, sizeof header);
    checksum sum = {{0}};
    add_bytes(&sum, of->head + sizeof header, of->head_bytes - (int64_t)sizeof header);
    for (int32_t i = 0; i < of->table.count; i++)
        add_bytes(&sum, block_data(engine, of->table.blocks[i]), block_bytes);
    header.data_checksum = finish(&sum);
    header.checksum = checksum_of(header);
    memcpy(of->head, &header, sizeof header);
    bool ok = od_write(fd, of->head, (size_t)of->head_bytes);
    for (int32_t i = 0; ok && i < of->table.count; i++)
        ok = od_write(fd, block_data(engine, of->table.blocks[i]), (size_t)block_bytes);
    return ok;
}

od_status od_save(od_conversation handle, int fd, od_error *error) {
    od_core *engine = NULL;
    od_state *state = NULL;
    snapshot of;
    od_status status = od_enter(handle, &engine, &state, error);
    if (status != OD_OK) return status;
    if (state->active)
        return od_leave(engine, od_fail(error, OD_BUSY, "the conversation is generating: read to "
                                        "the end or cancel before it is saved"));
    if (take_snapshot(engine, state, &of)) {
        /* Full blocks are never written, so the others go on meanwhile. */
        od_lock_release(&engine->lock);
        bool ok = write_snapshot(engine, &of, fd);
        od_lock_acquire(&engine->lock);
        if (!ok)
            status = od_fail(error, OD_FILE, "cannot write the conversation: the disk is full, or "
                             "file descriptor %d is not open for writing", fd);
    } else {
        status = od_fail(error, OD_MEMORY, "no memory to save a conversation");
    }
    free_snapshot(engine, &of);
    return od_leave(engine, status);
}

/* ---- restore ---- */

typedef struct saved_file {
    int fd;
    int64_t offset;
    int64_t length;
    const uint8_t *data;
    file_header header;
} saved_file;

static const int32_t *tokens_of(const saved_file *file) {
    return (const int32_t *)(const void *)(file->data + sizeof file->header);
}

static od_status check_header(const od_core *engine, const saved_file *file, od_error *error) {
    const file_header *header = &file->header;
    const od_model *model = engine->model;
    if (memcmp(header->magic, OD_KV_FILE_MAGIC, sizeof header->magic) != 0)
        return od_fail(error, OD_FILE, "not a saved conversation: it does not start with %s",
                       OD_KV_FILE_MAGIC);
    if (header->version != OD_KV_FILE_VERSION)
        return od_fail(error, OD_FILE, "a conversation saved in version %lld, this runtime reads "
                       "%d; submit its text again", (long long)header->version,
                       OD_KV_FILE_VERSION);
    if (memcmp(header->abi_hash, model->abi_hash, sizeof header->abi_hash) != 0)
        return od_fail(error, OD_FILE, "the conversation was saved by another build than this %s; "
                       "submit its text again", model->name);
    if (memcmp(header->identity, engine->weights.identity, sizeof header->identity) != 0)
        return od_fail(error, OD_FILE, "the conversation was saved with other weights of %s; "
                       "submit its text again", model->name);
    if (header->block_bytes != (uint64_t)model->kv_block_bytes || header->tokens < 0 ||
        header->tokens > model->context_tokens || header->blocks < 0 ||
        header->blocks > header->tokens / OD_KV_BLOCK_TOKENS ||
        (int64_t)header->data_start != data_start(header->tokens) ||
        header->checksum != checksum_of(*header))
        return od_fail(error, OD_FILE, "the saved conversation is damaged: its header makes no "
                       "sense");
    int64_t bytes = header->data_start + header->blocks * model->kv_block_bytes;
    if (file->length != bytes)
        return od_fail(error, OD_FILE, "the saved conversation is cut off or damaged: it has %lld "
                       "bytes, not %lld", (long long)file->length, (long long)bytes);
    return OD_OK;
}

static od_status check_content(const od_core *engine, const saved_file *file, od_error *error) {
    const file_header header = file->header;
    int64_t block_bytes = engine->kv.block_bytes;
    checksum sum = {{0}};
    add_bytes(&sum, file->data + sizeof header, header.data_start - (int64_t)sizeof header);
    for (int32_t i = 0; i < header.blocks; i++)
        add_bytes(&sum, file->data + header.data_start + i * block_bytes, block_bytes);
    if (finish(&sum) != header.data_checksum)
        return od_fail(error, OD_FILE, "the saved conversation is damaged: its checksum is "
                       "another");
    for (int32_t i = 0; i < header.tokens; i++) {
        int32_t token = tokens_of(file)[i];
        if (token < 0 || token >= engine->model->vocab_size)
            return od_fail(error, OD_FILE, "the saved conversation is damaged: token %d is %d", i,
                           token);
    }
    return OD_OK;
}

static od_status open_saved(const od_core *engine, saved_file *file, od_error *error) {
    int64_t file_bytes = od_file_bytes(file->fd);
    if (file_bytes < 0)
        return od_fail(error, OD_FILE, "file descriptor %d cannot be read (system error %lld)",
                       file->fd, -(long long)file_bytes);
    if (file->offset < 0 || file->offset % 4 != 0 || file->offset > file_bytes ||
        file->length > file_bytes - file->offset ||
        file->length < (int64_t)sizeof file->header)
        return od_fail(error, OD_FILE, "a saved conversation of %lld bytes at offset %lld does not "
                       "lie at a multiple of 4 inside a file of %lld bytes",
                       (long long)file->length, (long long)file->offset, (long long)file_bytes);
    file->data = od_map_file(file->fd, file->offset, file->length);
    if (file->data == NULL)
        return od_fail(error, OD_MEMORY, "cannot map a saved conversation of %lld bytes",
                       (long long)file->length);
    memcpy(&file->header, file->data, sizeof file->header);
    od_status status = check_header(engine, file, error);
    return status == OD_OK ? check_content(engine, file, error) : status;
}

/* Mapped where it lies on pages: then memory is only taken for what is written to. */
static void fill_block(od_core *engine, const saved_file *file, int32_t place, int32_t block) {
    int64_t bytes = engine->kv.block_bytes;
    int64_t at = file->header.data_start + place * bytes;
    uint8_t *to = engine->kv.data + (size_t)block * (size_t)bytes;
    if (!od_map_over(to, file->fd, file->offset + at, bytes))
        memcpy(to, file->data + at, (size_t)bytes);
}

static od_status fill_state(od_core *engine, od_state *state, const saved_file *file,
                            od_error *error) {
    od_kv_pool *pool = &engine->kv;
    od_kv_table *table = &state->table;
    int32_t blocks = file->header.blocks, tokens = file->header.tokens;
    if (tokens > 0) memcpy(state->tokens, tokens_of(file), (size_t)tokens * sizeof(int32_t));
    od_kv_found found = od_kv_find(pool, table, state->tokens, 0, blocks);
    int32_t needed = blocks - found.count + found.cost, available = od_kv_available(pool);
    if (needed > available)
        return od_fail(error, OD_KV_FULL, "the saved conversation needs %d KV blocks, %d of %d are "
                       "free; close a conversation, or open the engine with more kv_blocks",
                       needed, available, pool->block_count);
    od_kv_adopt(pool, table, state->tokens, 0, found.count);
    od_kv_grow(pool, table, blocks);
    for (int32_t place = found.count; place < blocks; place++) {
        fill_block(engine, file, place, table->blocks[place]);
        od_kv_publish(pool, table, state->tokens, place);
    }
    state->length = state->unread = tokens;
    state->computed = blocks * OD_KV_BLOCK_TOKENS;
    return OD_OK;
}

od_status od_restore(od_engine handle, int fd, int64_t offset, int64_t length,
                     od_conversation *conversation, od_error *error) {
    saved_file file = {.fd = fd, .offset = offset, .length = length};
    od_core *engine = NULL;
    int32_t slot = 0;
    od_status status = od_enter_engine(handle, &engine, error);
    if (status != OD_OK) return status;
    od_lock_release(&engine->lock); /* others go on while the file is read */
    status = open_saved(engine, &file, error);
    od_lock_acquire(&engine->lock);
    if (status == OD_OK) status = od_take_slot(engine, &slot, error);
    if (status == OD_OK) {
        od_state *state = &engine->states[slot];
        status = fill_state(engine, state, &file, error);
        state->open = status == OD_OK;
        if (status == OD_OK) *conversation = od_handle_conversation(handle, slot, state->number);
    }
    od_unmap_file(file.data, offset, length);
    return od_leave(engine, status);
}
