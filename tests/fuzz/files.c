/* Damage weights files and saved conversations, and use whatever still opens.
 *
 *     files WEIGHTS SCRATCH FIRST_SEED COUNT
 *
 * Prints how many opened. Half of the saved conversations get their checksums back, so that what
 * lies behind them is tried too. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kv_file.c" /* for its checksums */

extern const od_model od_model_toy;

enum { PROMPT = 70, SAID = 20 };

static uint64_t state;
static const char *scratch_path;

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void fail(const char *what, const od_error *error) {
    fprintf(stderr, "%s: %s\n", what, error->text);
    exit(1);
}

typedef struct file {
    uint8_t *data;
    size_t bytes;
} file;

static file read_file(int fd) {
    file from = {NULL, (size_t)lseek(fd, 0, SEEK_END)};
    from.data = malloc(from.bytes + 1);
    if (pread(fd, from.data, from.bytes, 0) != (ssize_t)from.bytes) exit(2);
    return from;
}

/* Some fields of the header become other numbers, or any byte another. */
static void damage(file to, size_t header_bytes) {
    static const uint64_t numbers[] = {0, 1, 2, 63, 64, 255, 1u << 16, INT32_MAX, UINT32_MAX,
                                       INT64_MAX, INT64_MIN, UINT64_MAX};
    for (uint64_t i = 1 + draw(3); i > 0 && to.bytes > 0; i--) {
        size_t span = draw(4) == 0 ? to.bytes : to.bytes < header_bytes ? to.bytes : header_bytes;
        size_t at = draw(span), width = draw(2) ? 4 : 8;
        if (draw(2) == 0 || at / 8 * 8 + 8 > to.bytes) {
            to.data[at] ^= (uint8_t)(1u << draw(8));
        } else {
            uint64_t number = numbers[draw(sizeof numbers / sizeof *numbers)] + draw(3) - 1;
            memcpy(to.data + at / 8 * 8 + (width == 4 ? draw(2) * 4 : 0), &number, width);
        }
    }
}

/* `of` in the scratch file behind `offset` bytes, damaged and perhaps cut or longer. */
static file write_damaged(int fd, file of, int64_t offset, size_t header_bytes, bool mend) {
    size_t length = of.bytes;
    if (draw(6) == 0) length = draw(of.bytes + 1);
    file copy = {malloc(length + 1), length};
    memcpy(copy.data, of.data, length);
    if (draw(20) != 0) damage(copy, header_bytes);
    od_kv_file_header header;
    if (mend && length >= sizeof header) {
        checksum sum = {{0}};
        add_bytes(&sum, copy.data + sizeof header, (int64_t)(length - sizeof header));
        memcpy(&header, copy.data, sizeof header);
        header.data_checksum = finish(&sum);
        header.checksum = checksum_of(header);
        memcpy(copy.data, &header, sizeof header);
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, copy.data, length, offset) != (ssize_t)length) exit(2);
    return copy;
}

static int64_t odd_number(int64_t usual) {
    switch (draw(8)) {
        case 0: return (int64_t)draw(256) - 128;
        case 1: return INT64_MAX - (int64_t)draw(3);
        case 2: return INT64_MIN + (int64_t)draw(3);
        case 3: return usual + (int64_t)draw(3) - 1;
        default: return usual;
    }
}

static void generate(od_conversation conversation, const int32_t *prompt, int32_t length) {
    od_error error = {{0}};
    od_sampling sampling = {.max_tokens = SAID, .top_p = 1.0F, .repetition_penalty = 1.0F};
    if (od_submit(conversation, prompt, length, &sampling, &error) != OD_OK) return;
    int32_t tokens[SAID], count = 0;
    while (od_read(conversation, tokens, SAID, -1, &count, &error) == OD_OK) continue;
}

static bool try_weights(file intact, int fd, const int32_t *prompt) {
    od_error error = {{0}};
    od_engine engine;
    od_conversation conversation;
    od_options options = {.threads = 1, .conversations = 1};
    int64_t offset = draw(3) == 0 ? (int64_t)draw(200) * 4 : 0;
    file copy = write_damaged(fd, intact, offset, sizeof(od_weights_header), false);
    int64_t length = odd_number((int64_t)copy.bytes);
    free(copy.data);
    offset = odd_number(offset);
    if (od_engine_open(&od_model_toy, fd, offset, length, &options, &engine, &error) != OD_OK)
        return error.text[0] != '\0' ? false : (fail("weights", &error), false);
    if (od_conversation_open(engine, &conversation, &error) != OD_OK) fail("open", &error);
    generate(conversation, prompt, 3);
    if (od_engine_close(engine, &error) != OD_OK) fail("close", &error);
    return true;
}

static bool try_saved(od_engine engine, file intact, int fd, const int32_t *prompt) {
    od_error error = {{0}};
    od_conversation conversation;
    int64_t offset = draw(3) == 0 ? (int64_t)draw(200) * 4 : 0;
    file copy = write_damaged(fd, intact, offset, sizeof(od_kv_file_header), draw(2) == 0);
    int64_t length = odd_number((int64_t)copy.bytes);
    free(copy.data);
    offset = odd_number(offset);
    if (od_restore(engine, fd, offset, length, &conversation, &error) != OD_OK)
        return error.text[0] != '\0' ? false : (fail("saved", &error), false);
    generate(conversation, prompt, 3);
    if (od_conversation_close(conversation, &error) != OD_OK) fail("close", &error);
    return true;
}

static int open_scratch(void) {
    int fd = open(scratch_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) exit(2);
    unlink(scratch_path); /* a new file each time: a mapped one must not change */
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    scratch_path = argv[2];
    int32_t prompt[PROMPT];
    for (int32_t i = 0; i < PROMPT; i++) prompt[i] = i * 7 % 97;
    od_error error = {{0}};
    od_options options = {.threads = 1, .conversations = 2, .kv_blocks = 12};
    od_engine engine;
    od_conversation conversation;
    int weights_fd = open(argv[1], O_RDONLY), saved_fd = open_scratch();
    file weights = read_file(weights_fd);
    if (od_engine_open(&od_model_toy, weights_fd, 0, (int64_t)weights.bytes, &options, &engine,
                       &error) != OD_OK)
        fail("engine", &error);
    if (od_conversation_open(engine, &conversation, &error) != OD_OK) fail("open", &error);
    generate(conversation, prompt, PROMPT);
    if (od_save(conversation, saved_fd, &error) != OD_OK) fail("save", &error);
    if (od_conversation_close(conversation, &error) != OD_OK) fail("close", &error);
    file saved = read_file(saved_fd);

    uint64_t first = strtoull(argv[3], NULL, 10), count = strtoull(argv[4], NULL, 10);
    uint64_t opened = 0, restored = 0;
    for (uint64_t seed = first; seed < first + count; seed++) {
        state = seed * 0x9e3779b97f4a7c15u + 1;
        int fd = open_scratch();
        opened += try_weights(weights, fd, prompt);
        close(fd);
        fd = open_scratch();
        restored += try_saved(engine, saved, fd, prompt);
        close(fd);
    }
    if (od_engine_close(engine, &error) != OD_OK) fail("close", &error);
    free(weights.data);
    free(saved.data);
    printf("%llu weights files and %llu conversations of %llu opened\n",
           (unsigned long long)opened, (unsigned long long)restored, (unsigned long long)count);
    return 0;
}
