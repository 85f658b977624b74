/* Mutate compiled tokenizers and chat templates, and use whatever still opens.
 *
 *     fuzz TOKENIZER TEMPLATE FIRST_SEED COUNT
 *
 * Prints how many mutants opened. Every copy has exactly the file's size, so that the address
 * sanitizer sees each byte read beyond it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ondevice.h"

static uint64_t state;

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static uint8_t *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(2);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(*bytes + 1);
    if (fread(data, 1, *bytes, file) != *bytes) exit(2);
    fclose(file);
    return data;
}

/* Change a few bytes: mostly of the header and the small tables, where one byte means much. */
static void mutate(uint8_t *data, size_t bytes) {
    uint64_t changes = 1 + draw(4);
    for (uint64_t i = 0; i < changes; i++) {
        size_t span = draw(3) == 0 ? bytes : bytes < 512 ? bytes : 512;
        size_t at = draw(2) == 0 ? draw(span) : bytes - 1 - draw(span);
        if (draw(4) == 0) at = draw(bytes);
        switch (draw(4)) {
            case 0: data[at] = (uint8_t)draw(256); break;
            case 1: data[at] ^= (uint8_t)(1u << draw(8)); break;
            case 2: data[at] = draw(2) ? 0xff : 0; break;
            default: data[at] = (uint8_t)(data[at] + draw(5) - 2); break;
        }
    }
}

static const char *const TEXTS[] = {
    "Once upon a time, there was a little girl named Lily.\n\n  She didn't like 12345 cats.",
    ("caf\xc3\xa9 e\xcc\x81\xcc\xa3\xcc\x87 \xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8 \xea\xb0\x80"
     "\xe1\x86\xa8 \xf0\x9f\x98\x80 <s></s> <l> <r>   the hello world"),
    "   \t\r\n\xc2\xa0\xe3\x80\x80 ''s'LL aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
};

static void use(od_tokenizer tokenizer) {
    static int32_t tokens[4096];
    static char text[1 << 20];
    od_error error;
    od_tokenizer_info info;
    if (od_tokenizer_describe(tokenizer, &info, &error) != OD_OK) abort();
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        int64_t count = 0, bytes = 0;
        uint32_t flags = (uint32_t)draw(4);
        od_status status = od_encode(tokenizer, TEXTS[i], (int64_t)strlen(TEXTS[i]), flags, tokens,
                                     4096, &count, &error);
        if (status != OD_OK) continue;
        if (count > 4096) count = 4096;
        for (int64_t j = 0; j < 16; j++) tokens[draw(4096)] = (int32_t)draw((uint64_t)info.vocab_size);
        count = 64;
        for (int64_t j = 0; j < count; j++)
            if (tokens[j] >= info.vocab_size) tokens[j] = 0;
        if (od_decode(tokenizer, tokens, count, flags, text, sizeof text, &bytes, &error) != OD_OK)
            abort();
        od_text_stream stream;
        int64_t joined = 0, piece = 0;
        if (od_text_stream_open(tokenizer, flags, &stream, &error) != OD_OK) abort();
        for (int64_t j = 0; j <= count; j++, joined += piece) {
            status = j < count ? od_text_stream_add(&stream, tokens[j], text, sizeof text, &piece,
                                                    &error)
                               : od_text_stream_finish(&stream, text, sizeof text, &piece, &error);
            if (status != OD_OK || piece > info.piece_bytes) abort();
        }
        if (joined != bytes) abort();
    }
}

static void chat(od_tokenizer tokenizer, const uint8_t *template, size_t bytes) {
    static const char *const roles[] = {"system", "user", "assistant", "tool", "other"};
    static const char *const contents[] = {" Hi \n", "", "a</think>\n\nb", "\xc2\xa0x"};
    od_message messages[4];
    static char text[1 << 16];
    static int32_t tokens[1 << 12];
    int64_t count;
    od_error error;
    for (int32_t i = 0; i < 4; i++) {
        const char *content = contents[draw(4)];
        messages[i] = (od_message){roles[draw(30) == 0 ? 4 : draw(4)], content,
                                   (int64_t)strlen(content)};
    }
    uint32_t flags = (uint32_t)draw(4);
    od_chat_render(template, (int64_t)bytes, messages, (int32_t)draw(5), flags,
                   (int64_t)(draw(1u << 31) * draw(1u << 31)), text, sizeof text, &count, &error);
    od_chat_encode(tokenizer, template, (int64_t)bytes, messages, 4, flags, 0, tokens, 1 << 12,
                   &count, &error);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    size_t bytes, template_bytes;
    uint8_t *original = read_file(argv[1], &bytes);
    uint8_t *template = read_file(argv[2], &template_bytes);
    uint64_t first = strtoull(argv[3], NULL, 10), count = strtoull(argv[4], NULL, 10);
    od_tokenizer intact;
    od_error error;
    if (od_tokenizer_open(original, (int64_t)bytes, &intact, &error) != OD_OK) return 3;
    uint64_t opened = 0;
    for (uint64_t seed = first; seed < first + count; seed++) {
        state = seed * 0x9e3779b97f4a7c15u + 1;
        size_t length = draw(20) == 0 ? draw(bytes + 1) : bytes;
        uint8_t *copy = malloc(length == 0 ? 1 : length);
        memcpy(copy, original, length);
        if (length > 0) mutate(copy, length);
        od_tokenizer tokenizer;
        if (od_tokenizer_open(copy, (int64_t)length, &tokenizer, &error) == OD_OK) {
            opened++;
            use(tokenizer);
            if (od_tokenizer_close(tokenizer, &error) != OD_OK) abort();
        }
        free(copy);
        copy = malloc(template_bytes);
        memcpy(copy, template, template_bytes);
        mutate(copy, template_bytes);
        chat(intact, copy, template_bytes);
        free(copy);
    }
    use(intact);
    if (od_tokenizer_close(intact, &error) != OD_OK) return 4;
    if (od_tokenizer_close(intact, &error) != OD_CLOSED) return 5;
    free(original);
    free(template);
    printf("%llu of %llu mutants opened\n", (unsigned long long)opened, (unsigned long long)count);
    return 0;
}
