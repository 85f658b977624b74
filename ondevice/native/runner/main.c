/* ondevice-run: generate with a bundle's model from a shell, where there is no app and no libc. */
#include "arguments.h"
#include "message.h"
#include "model.h"
#include "ondevice.h"
#include "platform.h"
#include "system.h"

/* The model that this executable was linked with. */
extern const od_model od_linked_model;

enum { STDOUT = 1, STDERR = 2, FAILURE = 1, MISUSE = 2 };

static void say(int fd, const char *text) { od_write(fd, text, od_length(text)); }

/* ---- files of the bundle ---- */

/* Open a file; negative with a message where that fails. */
static int open_file(const od_arguments *with, const char *name, od_error *error) {
    char path[4096];
    size_t n = od_length(with->bundle), name_bytes = od_length(name) + 1;
    if (n + 1 + name_bytes > sizeof path) {
        od_fail(error, OD_INVALID, "the path of the bundle is too long");
        return -1;
    }
    memcpy(path, with->bundle, n);
    path[n] = '/';
    memcpy(path + n + 1, name, name_bytes);
    int fd = od_open_to_read(path);
    if (fd < 0) od_fail(error, OD_INVALID, "cannot open the bundle's %s", name);
    return fd;
}

/* A whole file, mapped for good; NULL with a message where that fails. */
static const char *map_file(const od_arguments *with, const char *name, int64_t *bytes,
                            od_error *error) {
    int fd = open_file(with, name, error);
    if (fd < 0) return NULL;
    *bytes = od_file_bytes(fd);
    const char *data = *bytes > 0 ? od_map_file(fd, 0, *bytes) : NULL;
    if (data == NULL) od_fail(error, OD_INVALID, "cannot read the bundle's %s", name);
    return data;
}

static od_status open_tokenizer(const od_arguments *with, od_tokenizer *tokenizer,
                                od_error *error) {
    int64_t bytes = 0;
    const char *data = map_file(with, "tokenizer/tokenizer.bin", &bytes, error);
    return data == NULL ? OD_INVALID : od_tokenizer_open(data, bytes, tokenizer, error);
}

/* The tokens that end a text, as the manifest has them. It was written by a program, so its key
 * stands there once and a list follows. */
static od_status read_stop_tokens(od_arguments *with, od_error *error) {
    static const char key[] = "\"eos_token_ids\":";
    int64_t bytes = 0, key_bytes = sizeof key - 1;
    const char *data = map_file(with, "manifest.json", &bytes, error);
    if (data == NULL) return OD_INVALID;
    int64_t at = 0;
    while (at + key_bytes < bytes && memcmp(data + at, key, (size_t)key_bytes) != 0) at++;
    while (at < bytes && data[at] != '[') at++;
    int32_t count = -1;
    if (at < bytes && memcmp(data + bytes - 2, "}\n", 2) == 0) /* no list goes on behind it */
        count = od_parse_list(data + at + 1, ']', with->stop_tokens, OD_STOP_TOKENS);
    with->sampling.stop_token_count = count < 0 ? 0 : count;
    return OD_OK;
}

/* ---- the model ---- */

/* Let conversations find what the bundle ships of its system prompt, if it does. */
static od_status share_prompt(const od_arguments *with, od_engine engine, od_error *error) {
    od_conversation prompt;
    int fd = open_file(with, "prompt/system.kv", NULL);
    if (fd < 0) return OD_OK;
    od_status status = od_restore(engine, fd, 0, od_file_bytes(fd), &prompt, error);
    if (status == OD_OK) return od_conversation_close(prompt, error);
    return status == OD_KV_FULL ? OD_OK : status; /* then it is computed */
}

static od_status open_engine(const od_arguments *with, od_engine *engine, od_error *error) {
    int fd = open_file(with, "weights.bin", error);
    if (fd < 0) return OD_WEIGHTS;
    return od_engine_open(&od_linked_model, fd, 0, od_file_bytes(fd), &with->options, engine,
                          error);
}

/* Turn the prompt into tokens, and ask for text. */
static od_status take_prompt(od_arguments *with, od_error *error) {
    int64_t bytes = (int64_t)od_length(with->prompt), most = bytes + 16, count = 0;
    od_status status = open_tokenizer(with, &with->sampling.tokenizer, error);
    if (status == OD_OK && with->sampling.stop_token_count == 0)
        status = read_stop_tokens(with, error);
    if (status != OD_OK) return status;
    with->sampling.text_flags = OD_DECODE_SKIP_SPECIAL | OD_DECODE_CONTINUES;
    with->tokens = od_reserve((size_t)most * sizeof *with->tokens);
    if (with->tokens == NULL) return od_fail(error, OD_MEMORY, "no memory for the prompt");
    status = od_encode(with->sampling.tokenizer, with->prompt, bytes, OD_ENCODE_SPECIAL,
                       with->tokens, most, &count, error);
    if (status == OD_OK && count > most)
        status = od_fail(error, OD_INVALID, "the prompt has %lld tokens", (long long)count);
    with->token_count = (int32_t)count;
    return status;
}

/* Logits of the prompt, to a file; the conversation is left empty. */
static od_status write_logits(od_conversation conversation, const od_arguments *with,
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

static od_status say_tokens(od_conversation conversation, od_error *error) {
    int32_t tokens[16], count = 0;
    od_status status = od_read(conversation, tokens, 16, -1, &count, error);
    for (int32_t i = 0; i < count; i++) say_number(tokens[i]);
    return status;
}

static od_status say_text(od_conversation conversation, od_error *error) {
    char text[256];
    int64_t bytes = 0;
    od_status status = od_read_text(conversation, text, sizeof text, -1, &bytes, error);
    od_write(STDOUT, text, (size_t)bytes);
    return status;
}

static od_status generate(od_conversation conversation, const od_arguments *with,
                          od_error *error) {
    od_status status =
        od_submit(conversation, with->tokens, with->token_count, &with->sampling, error);
    while (status == OD_OK)
        status = with->prompt == NULL ? say_tokens(conversation, error)
                                      : say_text(conversation, error);
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
    od_arguments with = {.sampling = {.max_tokens = 64}, .options = {.conversations = 1}};
    const char *wrong = NULL;
    if (!od_parse(argc, argv, &with, &wrong)) {
        if (wrong != NULL) say(STDERR, "ondevice-run: cannot read "), say(STDERR, wrong);
        say(STDERR, wrong == NULL ? od_usage : "\n");
        return MISUSE;
    }
    od_engine engine;
    od_conversation conversation;
    od_error error;
    od_status status = with.prompt == NULL ? OD_OK : take_prompt(&with, &error);
    if (status == OD_OK) status = open_engine(&with, &engine, &error);
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
