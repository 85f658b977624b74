/* Runs a model through ondevice.h from several threads and prints what it said, for the sanitizer
 * builds: driver LIBMODEL SYMBOL WEIGHTS TOKENIZER THREADS TOKEN... */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ondevice.h"

enum { CLIENTS = 3, MOST = 40, ROUNDS = 12, TURN = 6 };

static od_engine engine;
static int32_t prompt[64];
static int32_t prompt_length;

typedef struct client {
    pthread_t thread;
    int32_t number;
    int32_t said[MOST];
    int32_t count;
} client;

static void check(od_status status, od_status expected, const char *what, const od_error *error) {
    if (status == expected) return;
    fprintf(stderr, "%s: %s instead of %s: %s\n", what, od_status_name(status),
            od_status_name(expected), error->text);
    exit(1);
}

static od_status read_all(od_conversation c, int32_t *said, int32_t *count, od_error *error) {
    for (;;) {
        int32_t n = 0;
        od_status status = od_read(c, said + *count, 7, 50, &n, error);
        *count += n;
        if (status != OD_OK && status != OD_TIMEOUT) return status;
    }
}

/* Two turns of one conversation. */
static void *talk(void *argument) {
    client *self = argument;
    od_conversation c;
    od_error error = {{0}};
    od_sampling sampling = {.max_tokens = 12, .temperature = 0.8F, .seed = 7};
    check(od_conversation_open(engine, &c, &error), OD_OK, "open", &error);
    check(od_submit(c, prompt, prompt_length - self->number, &sampling, &error), OD_OK, "submit",
          &error);
    check(read_all(c, self->said, &self->count, &error), OD_LENGTH, "read", &error);
    check(od_submit(c, prompt, 2, &sampling, &error), OD_OK, "second turn", &error);
    check(read_all(c, self->said, &self->count, &error), OD_LENGTH, "read on", &error);
    check(od_conversation_close(c, &error), OD_OK, "close", &error);
    return NULL;
}

static void show(const client *c) {
    printf("%d:", c->number);
    for (int32_t i = 0; i < c->count; i++) printf(" %d", c->said[i]);
    printf("\n");
}

static void together_and_alone(void) {
    client together[CLIENTS] = {0}, alone[CLIENTS] = {0};
    for (int32_t i = 0; i < CLIENTS; i++) {
        together[i].number = alone[i].number = i;
        pthread_create(&together[i].thread, NULL, talk, &together[i]);
    }
    for (int32_t i = 0; i < CLIENTS; i++) pthread_join(together[i].thread, NULL);
    for (int32_t i = 0; i < CLIENTS; i++) talk(&alone[i]);
    for (int32_t i = 0; i < CLIENTS; i++) show(&together[i]);
    for (int32_t i = 0; i < CLIENTS; i++) show(&alone[i]);
}

static void turn(od_conversation c, const int32_t *tokens, int32_t n, int32_t *said) {
    od_error error = {{0}};
    od_sampling sampling = {.max_tokens = TURN, .temperature = 0.8F, .seed = 5};
    int32_t count = 0;
    check(od_submit(c, tokens, n, &sampling, &error), OD_OK, "submit", &error);
    check(read_all(c, said, &count, &error), OD_LENGTH, "read", &error);
}

/* The same texts in all threads; more of them than the cache has blocks for. */
static void *share_and_fork(void *argument) {
    od_error error = {{0}};
    for (int32_t round = 0; round < ROUNDS; round++) {
        int32_t text[64], first[TURN], said[TURN];
        od_conversation c, fork;
        od_stats stats;
        memcpy(text, prompt, sizeof text);
        text[0] = round;
        check(od_conversation_open(engine, &c, &error), OD_OK, "open", &error);
        turn(c, text, prompt_length, first);
        check(od_fork(c, &fork, &error), OD_OK, "fork", &error);
        turn(fork, text, 3, said);
        turn(c, text + 3, 3, said);
        check(od_rewind(fork, prompt_length, &error), OD_OK, "rewind", &error);
        check(od_conversation_close(c, &error), OD_OK, "close", &error);
        turn(fork, NULL, 0, said);
        check(od_conversation_stats(fork, &stats, &error), OD_OK, "stats", &error);
        if (memcmp(first, said, sizeof first) != 0 || stats.own_tokens != prompt_length - 1) {
            fprintf(stderr, "round %d: the fork says something else\n", round);
            exit(1);
        }
        check(od_conversation_close(fork, &error), OD_OK, "close", &error);
    }
    return argument;
}

/* Each saves what it has, restores it while others do the same, and goes on. */
static void *save_and_restore(void *argument) {
    od_error error = {{0}};
    for (int32_t round = 0; round < ROUNDS; round++) {
        int32_t text[64], first[TURN], said[TURN];
        od_conversation c, restored;
        FILE *file = tmpfile();
        memcpy(text, prompt, sizeof text);
        text[1] = round;
        check(od_conversation_open(engine, &c, &error), OD_OK, "open", &error);
        turn(c, text, prompt_length, first);
        check(od_save(c, fileno(file), &error), OD_OK, "save", &error);
        turn(c, text, 3, first);
        check(od_conversation_close(c, &error), OD_OK, "close", &error);
        int64_t length = lseek(fileno(file), 0, SEEK_END);
        check(od_restore(engine, fileno(file), 0, length - 1, &restored, &error), OD_FILE,
              "restore a part", &error);
        check(od_restore(engine, fileno(file), 0, length, &restored, &error), OD_OK, "restore",
              &error);
        fclose(file);
        turn(restored, text, 3, said);
        if (memcmp(first, said, sizeof first) != 0) {
            fprintf(stderr, "round %d: the restored conversation says something else\n", round);
            exit(1);
        }
        check(od_conversation_close(restored, &error), OD_OK, "close", &error);
    }
    return argument;
}

static void all_in_threads(void *(*work)(void *)) {
    pthread_t threads[CLIENTS];
    for (int32_t i = 0; i < CLIENTS; i++) pthread_create(&threads[i], NULL, work, NULL);
    for (int32_t i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
}

/* ---- text, while another thread reads the tokens ---- */

typedef struct text_client {
    pthread_t thread;
    od_conversation conversation;
    od_tokenizer tokenizer;
    int32_t number;
    int32_t tokens;
    char text[4096];
    int64_t bytes;
} text_client;

static void *read_logprobs(void *argument) {
    text_client *self = argument;
    od_token_logprobs entries[3];
    for (;;) {
        int32_t n = 0;
        od_error error = {{0}};
        od_status status = od_read_logprobs(self->conversation, entries, 3, 5, &n, &error);
        for (int32_t i = 0; i < n; i++)
            if (!(entries[i].chosen.logprob <= 0.0F) || entries[i].top_count > 4) exit(3);
        self->tokens += n;
        if (status != OD_OK && status != OD_TIMEOUT) return argument;
    }
}

static od_sampling mixed(const text_client *whose) {
    static const od_stop_string stops[] = {{"a.b#", 4}, {"...", 3}, {"never said", 10}};
    static const od_logit_bias bias[] = {{7, 2.5F}, {1, -100.0F}};
    int32_t number = whose->number;
    return (od_sampling){.max_tokens = 70, .temperature = number == 0 ? 0.0F : 20.0F,
                         .seed = (uint64_t)number, .top_k = number == 1 ? 30 : 0,
                         .top_p = number == 2 ? 0.8F : 0.0F, .min_p = 0.01F, .typical_p = 0.95F,
                         .repetition_penalty = 1.1F, .presence_penalty = 0.5F,
                         .frequency_penalty = 0.25F, .penalty_tokens = 50, .logit_bias = bias,
                         .logit_bias_count = 2, .logprobs = 5, .timeout_ms = 60000,
                         .tokenizer = whose->tokenizer, .stop_strings = stops,
                         .stop_string_count = 3,
                         .text_flags = OD_DECODE_CONTINUES | OD_DECODE_SKIP_SPECIAL};
}

static void *talk_in_text(void *argument) {
    text_client *self = argument;
    od_error error = {{0}};
    pthread_t reader;
    od_sampling sampling = mixed(self);
    check(od_conversation_open(engine, &self->conversation, &error), OD_OK, "open", &error);
    for (int32_t round = 0; round < 2; round++) {
        check(od_submit(self->conversation, prompt, 9, &sampling, &error), OD_OK, "submit", &error);
        pthread_create(&reader, NULL, read_logprobs, self);
        od_status status;
        do {
            int64_t n = 0;
            status = od_read_text(self->conversation, self->text + self->bytes, 5, 5, &n, &error);
            self->bytes += n;
        } while (status == OD_OK || status == OD_TIMEOUT);
        if (status != OD_STOP) check(status, OD_LENGTH, "read text", &error);
        pthread_join(reader, NULL);
        int32_t tokens = 0;
        check(od_conversation_tokens(self->conversation, &tokens, &error), OD_OK, "tokens", &error);
        if (tokens != 9 * (round + 1) + self->tokens) exit(4);
    }
    check(od_conversation_close(self->conversation, &error), OD_OK, "close", &error);
    return NULL;
}

static void text_together_and_alone(const void *data, int64_t bytes) {
    static text_client together[CLIENTS], alone[CLIENTS];
    od_tokenizer tokenizer;
    od_error error = {{0}};
    check(od_tokenizer_open(data, bytes, &tokenizer, &error), OD_OK, "tokenizer", &error);
    for (int32_t i = 0; i < CLIENTS; i++) {
        together[i].number = alone[i].number = i;
        together[i].tokenizer = alone[i].tokenizer = tokenizer;
        pthread_create(&together[i].thread, NULL, talk_in_text, &together[i]);
    }
    for (int32_t i = 0; i < CLIENTS; i++) pthread_join(together[i].thread, NULL);
    for (int32_t i = 0; i < CLIENTS; i++) {
        talk_in_text(&alone[i]);
        if (alone[i].bytes < 40 || alone[i].bytes != together[i].bytes ||
            memcmp(alone[i].text, together[i].text, (size_t)alone[i].bytes) != 0)
            exit(5);
        fwrite(alone[i].text, 1, (size_t)alone[i].bytes, stdout);
    }
    check(od_tokenizer_close(tokenizer, &error), OD_OK, "close tokenizer", &error);
}

static void cancel_and_logits(int32_t vocab_size) {
    od_conversation c;
    od_error error = {{0}};
    od_sampling endless = {.max_tokens = INT32_MAX};
    int32_t n = 0, tokens[8];
    check(od_conversation_open(engine, &c, &error), OD_OK, "open", &error);
    check(od_submit(c, prompt, prompt_length, &endless, &error), OD_OK, "submit", &error);
    check(od_read(c, tokens, 1, -1, &n, &error), OD_OK, "read", &error);
    check(od_cancel(c, &error), OD_OK, "cancel", &error);
    od_status status;
    do status = od_read(c, tokens, 8, -1, &n, &error);
    while (status == OD_OK);
    if (status != OD_CONTEXT_FULL) check(status, OD_CANCELLED, "cancelled", &error);
    check(od_rewind(c, 0, &error), OD_OK, "rewind", &error);
    float *logits = malloc(sizeof(float) * (size_t)prompt_length * (size_t)vocab_size);
    check(od_logits(c, prompt, prompt_length, logits, &error), OD_OK, "logits", &error);
    printf("logits: %.9g\n", (double)logits[prompt_length * vocab_size - 1]);
    free(logits);
    check(od_conversation_close(c, &error), OD_OK, "close", &error);
    check(od_cancel(c, &error), OD_CLOSED, "cancel after close", &error);
}

/* Counts what a turn takes: every launch in every step of it. */
static void profile_a_turn(void) {
    static od_profile_row rows[4096];
    static od_profile_event events[4096];
    od_error error = {{0}};
    od_conversation c;
    int32_t said[TURN];
    int64_t count = 0, chunks = 0;
    check(od_profile_read(engine, rows, 4096, &count, &error), OD_INVALID, "not started", &error);
    check(od_profile_start(engine, 8, &error), OD_OK, "profile", &error);
    check(od_conversation_open(engine, &c, &error), OD_OK, "open", &error);
    turn(c, prompt, prompt_length, said);
    check(od_profile_read(engine, rows, 4096, &count, &error), OD_OK, "rows", &error);
    for (int64_t i = 0; i < count; i++) chunks += rows[i].chunks;
    check(od_profile_events(engine, events, 4096, &count, &error), OD_OK, "events", &error);
    if (chunks == 0 || count < 8) {
        fprintf(stderr, "the profile counted nothing\n");
        exit(1);
    }
    check(od_profile_start(engine, 0, &error), OD_OK, "from zero", &error);
    check(od_profile_read(engine, rows, 4096, &count, &error), OD_OK, "no rows", &error);
    check(od_profile_stop(engine, &error), OD_OK, "stop", &error);
    check(od_conversation_close(c, &error), OD_OK, "close", &error);
}

/* Reads for ever, until the engine is closed under it. */
static void *read_until_closed(void *argument) {
    od_conversation c = *(od_conversation *)argument;
    od_error error = {{0}};
    int32_t tokens[4], n = 0;
    for (;;) {
        od_status status = od_read(c, tokens, 4, -1, &n, &error);
        if (status == OD_CLOSED) return NULL;
        if (status == OD_CONTEXT_FULL) status = od_rewind(c, 1, &error);
        if (status == OD_CLOSED) return NULL;
        od_sampling endless = {.max_tokens = INT32_MAX};
        if (status == OD_OK && n == 0) status = od_submit(c, prompt, 1, &endless, &error);
        if (status == OD_CLOSED) return NULL;
        check(status, OD_OK, "read until closed", &error);
    }
}

static void close_under_readers(void) {
    pthread_t readers[2];
    od_conversation c[2];
    od_error error = {{0}};
    od_sampling endless = {.max_tokens = INT32_MAX};
    for (int32_t i = 0; i < 2; i++) {
        check(od_conversation_open(engine, &c[i], &error), OD_OK, "open", &error);
        check(od_submit(c[i], prompt, 1, &endless, &error), OD_OK, "submit", &error);
        pthread_create(&readers[i], NULL, read_until_closed, &c[i]);
    }
    usleep(20000);
    check(od_engine_close(engine, &error), OD_OK, "close engine", &error);
    for (int32_t i = 0; i < 2; i++) pthread_join(readers[i], NULL);
    check(od_engine_close(engine, &error), OD_CLOSED, "close twice", &error);
    check(od_cancel(c[0], &error), OD_CLOSED, "cancel after close", &error);
}

int main(int argc, char **argv) {
    if (argc < 7) return 2;
    void *library = dlopen(argv[1], RTLD_NOW);
    if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
    const struct od_model *model = dlsym(library, argv[2]);
    int fd = open(argv[3], O_RDONLY);
    od_options options = {.threads = atoi(argv[5]), .kv_blocks = 24, .draft_tokens = 4};
    for (int32_t i = 6; i < argc; i++) prompt[prompt_length++] = atoi(argv[i]);
    od_error error = {{0}};
    check(od_engine_open(model, fd, 0, lseek(fd, 0, SEEK_END), &options, &engine, &error), OD_OK,
          "open engine", &error);
    close(fd);
    static _Alignas(8) char tokenizer[1 << 20];
    fd = open(argv[4], O_RDONLY);
    int64_t tokenizer_bytes = read(fd, tokenizer, sizeof tokenizer);
    close(fd);
    od_engine_info info;
    check(od_engine_describe(engine, &info, &error), OD_OK, "describe", &error);
    together_and_alone();
    all_in_threads(share_and_fork);
    all_in_threads(save_and_restore);
    cancel_and_logits(info.vocab_size);
    profile_a_turn();
    text_together_and_alone(tokenizer, tokenizer_bytes);
    close_under_readers();
    return 0;
}
