/* ondevice-run: generate with a bundle's model from a shell, where there is no app and no libc. */
#include "message.h"
#include "model.h"
#include "ondevice.h"
#include "platform.h"
#include "system.h"

/* The model that this executable was linked with. */
extern const od_model od_linked_model;

static const char USAGE[] =
    "usage: ondevice-run BUNDLE --tokens 1,2,3 [--max-tokens N] [--threads N] [--stop ID,ID]\n"
    "                    [--temperature T] [--seed N] [--variant NAME] [--logits FILE]\n"
    "Prints the numbers of the generated tokens. --logits writes float32[prompt tokens, vocab].\n";

enum { STDOUT = 1, STDERR = 2, FAILURE = 1, MISUSE = 2 };

typedef struct arguments {
    const char *bundle;
    const char *logits;
    int32_t *tokens;
    int32_t token_count;
    int32_t stop_tokens[OD_STOP_TOKENS];
    od_sampling sampling;
    od_options options;
} arguments;

static size_t length_of(const char *text) {
    size_t n = 0;
    while (text[n] != '\0') n++;
    return n;
}

static void say(int fd, const char *text) { od_write(fd, text, length_of(text)); }

static bool same(const char *a, const char *b) {
    size_t n = length_of(a);
    return n == length_of(b) && memcmp(a, b, n) == 0;
}

/* ---- arguments ---- */

/* Move *text behind a decimal number of at most nine digits; -1 where there is none. */
static int32_t take_number(const char **text) {
    int32_t value = 0, digits = 0;
    for (; **text >= '0' && **text <= '9' && digits < 9; digits++, (*text)++)
        value = value * 10 + (**text - '0');
    return digits > 0 ? value : -1;
}

/* Numbers separated by commas; how many, or -1. */
static int32_t parse_list(const char *text, int32_t *values, int32_t capacity) {
    for (int32_t n = 0; n < capacity;) {
        values[n] = take_number(&text);
        if (values[n++] < 0) return -1;
        if (*text == '\0') return n;
        if (*text++ != ',') return -1;
    }
    return -1;
}

static bool parse_number(const char *text, int32_t *value) {
    return parse_list(text, value, 1) == 1;
}

/* 0.7, as thousandths at most. */
static bool parse_decimal(const char *text, float *value) {
    int32_t whole = take_number(&text), part = 0, scale = 1;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9' && scale < 1000; text++, scale *= 10)
            part = part * 10 + (*text - '0');
    *value = (float)whole + (float)part / (float)scale;
    return whole >= 0 && *text == '\0';
}

static bool parse_tokens(const char *text, arguments *to) {
    int32_t most = 1;
    for (const char *c = text; *c != '\0'; c++) most += *c == ',';
    to->tokens = od_reserve((size_t)most * sizeof *to->tokens);
    to->token_count = to->tokens == NULL ? -1 : parse_list(text, to->tokens, most);
    return to->token_count > 0;
}

static bool parse_option(const char *name, const char *value, arguments *to) {
    if (same(name, "--tokens")) return parse_tokens(value, to);
    if (same(name, "--max-tokens")) return parse_number(value, &to->sampling.max_tokens);
    if (same(name, "--threads")) return parse_number(value, &to->options.threads);
    if (same(name, "--temperature")) return parse_decimal(value, &to->sampling.temperature);
    if (same(name, "--variant")) return (to->options.variant = value) != NULL;
    if (same(name, "--logits")) return (to->logits = value) != NULL;
    if (same(name, "--seed")) {
        int32_t seed = 0;
        bool right = parse_number(value, &seed);
        to->sampling.seed = (uint64_t)seed;
        return right;
    }
    if (same(name, "--stop")) {
        to->sampling.stop_token_count = parse_list(value, to->stop_tokens, OD_STOP_TOKENS);
        return to->sampling.stop_token_count > 0;
    }
    return false;
}

static bool parse(int argc, char *const *argv, arguments *to) {
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-' && to->bundle == NULL) {
            to->bundle = argv[i];
        } else if (i + 1 >= argc || !parse_option(argv[i], argv[i + 1], to)) {
            say(STDERR, "ondevice-run: cannot read ");
            say(STDERR, argv[i]);
            say(STDERR, "\n");
            return false;
        } else {
            i++;
        }
    }
    to->sampling.stop_tokens = to->stop_tokens;
    return to->bundle != NULL && to->tokens != NULL;
}

/* ---- the model ---- */

/* A file of the bundle, open; negative where it cannot be. */
static int open_file(const arguments *with, const char *name) {
    char path[4096];
    size_t n = length_of(with->bundle), more = length_of(name) + 1;
    if (n + more > sizeof path) return -1;
    memcpy(path, with->bundle, n);
    memcpy(path + n, name, more);
    return od_open_to_read(path);
}

/* Let conversations find what the bundle ships of its system prompt, if it does. */
static od_status share_prompt(const arguments *with, od_engine engine, od_error *error) {
    od_conversation prompt;
    int fd = open_file(with, "/prompt/system.kv");
    if (fd < 0) return OD_OK;
    od_status status = od_restore(engine, fd, 0, od_file_bytes(fd), &prompt, error);
    if (status == OD_OK) return od_conversation_close(prompt, error);
    return status == OD_KV_FULL ? OD_OK : status; /* then it is computed */
}

static od_status open_engine(const arguments *with, od_engine *engine, od_error *error) {
    int fd = open_file(with, "/weights.bin");
    if (fd < 0) return od_fail(error, OD_WEIGHTS, "cannot open the bundle's weights.bin");
    return od_engine_open(&od_linked_model, fd, 0, od_file_bytes(fd), &with->options, engine,
                          error);
}

/* Logits of the prompt, to a file; the conversation is left empty. */
static od_status write_logits(od_conversation conversation, const arguments *with,
                              od_error *error) {
    size_t bytes = (size_t)with->token_count * (size_t)od_linked_model.vocab_size * sizeof(float);
    float *logits = od_reserve(bytes);
    if (logits == NULL) return od_fail(error, OD_MEMORY, "no memory for the logits");
    od_status status = od_logits(conversation, with->tokens, with->token_count, logits, error);
    int fd = status == OD_OK ? od_open_to_write(with->logits) : -1;
    if (status == OD_OK && (fd < 0 || !od_write(fd, logits, bytes)))
        status = od_fail(error, OD_INVALID, "cannot write %s", with->logits);
    od_release(logits, bytes);
    return status == OD_OK ? od_rewind(conversation, 0, error) : status;
}

static void say_number(int32_t number) {
    od_error text;
    od_fail(&text, OD_OK, "%d ", number);
    say(STDOUT, text.text);
}

static od_status generate(od_conversation conversation, const arguments *with, od_error *error) {
    od_status status =
        od_submit(conversation, with->tokens, with->token_count, &with->sampling, error);
    while (status == OD_OK) {
        int32_t tokens[16], count = 0;
        status = od_read(conversation, tokens, 16, -1, &count, error);
        for (int32_t i = 0; i < count; i++) say_number(tokens[i]);
    }
    say(STDOUT, "\n");
    return status;
}

static void say_figures(od_engine engine, od_conversation conversation, od_status ending) {
    od_stats stats;
    od_engine_info info;
    od_error text;
    if (od_conversation_stats(conversation, &stats, NULL) != OD_OK) return;
    if (od_engine_describe(engine, &info, NULL) != OD_OK) return;
    od_fail(&text, OD_OK,
            "%s: %d prompt tokens, first token after %d ms, %d generated, %d per second; %s, %d "
            "threads\n",
            od_status_name(ending), stats.prompt_tokens, (int)stats.first_token_ms,
            stats.generated_tokens, (int)stats.tokens_per_second, info.variant, info.threads);
    say(STDERR, text.text);
}

int od_run(int argc, char *const *argv) {
    arguments with = {.sampling = {.max_tokens = 64}, .options = {.conversations = 1}};
    if (!parse(argc, argv, &with)) return say(STDERR, USAGE), MISUSE;
    od_engine engine;
    od_conversation conversation;
    od_error error;
    od_status status = open_engine(&with, &engine, &error);
    if (status == OD_OK) status = share_prompt(&with, engine, &error);
    if (status == OD_OK) status = od_conversation_open(engine, &conversation, &error);
    if (status == OD_OK && with.logits != NULL)
        status = write_logits(conversation, &with, &error);
    if (status == OD_OK) status = generate(conversation, &with, &error);
    if (status < 0) {
        say(STDERR, "ondevice-run: ");
        say(STDERR, error.text);
        say(STDERR, "\n");
        return FAILURE;
    }
    say_figures(engine, conversation, status);
    od_engine_close(engine, NULL);
    return 0;
}
