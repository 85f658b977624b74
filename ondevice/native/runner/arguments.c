#include "arguments.h"

const char od_usage[] =
    "usage: ondevice-run BUNDLE --prompt TEXT [--stop TEXT]... [options]\n"
    "       ondevice-run BUNDLE --tokens 1,2,3 [options]\n"
    "Prints the text that continues TEXT, or the numbers of the tokens. Options:\n"
    "  --max-tokens N  --timeout-ms N  --stop-tokens ID,ID  --seed N  --temperature T\n"
    "  --top-k N  --top-p P  --min-p P  --typical-p P  --repetition-penalty R\n"
    "  --presence-penalty P  --frequency-penalty P  --threads N  --variant NAME\n"
    "  --logits FILE  writes float32[prompt tokens, vocab]\n";

size_t od_length(const char *text) {
    size_t n = 0;
    while (text[n] != '\0') n++;
    return n;
}

static bool same(const char *a, const char *b) {
    size_t n = od_length(a);
    return n == od_length(b) && memcmp(a, b, n) == 0;
}

/* ---- numbers ---- */

/* Move *text behind a decimal number of at most nine digits; -1 where there is none. */
static int32_t take_number(const char **text) {
    int32_t value = 0, digits = 0;
    for (; **text >= '0' && **text <= '9' && digits < 9; digits++, (*text)++)
        value = value * 10 + (**text - '0');
    return digits > 0 ? value : -1;
}

static void skip_space(const char **text) {
    while (**text == ' ' || **text == '\n') (*text)++;
}

int32_t od_parse_list(const char *text, char end, int32_t *values, int32_t capacity) {
    for (int32_t n = 0; n < capacity;) {
        skip_space(&text);
        values[n] = take_number(&text);
        if (values[n++] < 0) return -1;
        skip_space(&text);
        if (*text == end) return n;
        if (*text++ != ',') return -1;
    }
    return -1;
}

static bool parse_number(const char *text, int32_t *value) {
    return od_parse_list(text, '\0', value, 1) == 1;
}

/* -0.7, as thousandths at most. */
static bool parse_decimal(const char *text, float *value) {
    float sign = *text == '-' ? -1.0F : 1.0F;
    if (*text == '-') text++;
    int32_t whole = take_number(&text), part = 0, scale = 1;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9' && scale < 1000; text++, scale *= 10)
            part = part * 10 + (*text - '0');
    *value = sign * ((float)whole + (float)part / (float)scale);
    return whole >= 0 && *text == '\0';
}

/* ---- options ---- */

static bool parse_tokens(const char *text, od_arguments *to) {
    int32_t most = 1;
    for (const char *c = text; *c != '\0'; c++) most += *c == ',';
    to->tokens = od_reserve((size_t)most * sizeof *to->tokens);
    to->token_count = to->tokens == NULL ? -1 : od_parse_list(text, '\0', to->tokens, most);
    return to->token_count > 0;
}

static bool parse_stop(const char *text, od_arguments *to) {
    int32_t *count = &to->sampling.stop_string_count;
    if (*count == OD_STOP_STRINGS || od_length(text) > OD_STOP_STRING_BYTES) return false;
    to->stop_strings[(*count)++] = (od_stop_string){text, (int32_t)od_length(text)};
    return true;
}

static bool parse_seed(const char *text, od_arguments *to) {
    int32_t seed = 0;
    bool right = parse_number(text, &seed);
    to->sampling.seed = (uint64_t)seed;
    return right;
}

static bool parse_option(const char *name, const char *value, od_arguments *to) {
    od_sampling *sampling = &to->sampling;
    const struct {
        const char *name;
        int32_t *number;
        float *decimal;
        const char **text;
    } options[] = {
        {"--prompt", NULL, NULL, &to->prompt},
        {"--logits", NULL, NULL, &to->logits},
        {"--variant", NULL, NULL, &to->options.variant},
        {"--threads", &to->options.threads, NULL, NULL},
        {"--max-tokens", &sampling->max_tokens, NULL, NULL},
        {"--timeout-ms", &sampling->timeout_ms, NULL, NULL},
        {"--top-k", &sampling->top_k, NULL, NULL},
        {"--temperature", NULL, &sampling->temperature, NULL},
        {"--top-p", NULL, &sampling->top_p, NULL},
        {"--min-p", NULL, &sampling->min_p, NULL},
        {"--typical-p", NULL, &sampling->typical_p, NULL},
        {"--repetition-penalty", NULL, &sampling->repetition_penalty, NULL},
        {"--presence-penalty", NULL, &sampling->presence_penalty, NULL},
        {"--frequency-penalty", NULL, &sampling->frequency_penalty, NULL},
    };
    if (same(name, "--tokens")) return parse_tokens(value, to);
    if (same(name, "--seed")) return parse_seed(value, to);
    if (same(name, "--stop")) return parse_stop(value, to);
    if (same(name, "--stop-tokens")) {
        sampling->stop_token_count = od_parse_list(value, '\0', to->stop_tokens, OD_STOP_TOKENS);
        return sampling->stop_token_count > 0;
    }
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        if (!same(name, options[i].name)) continue;
        if (options[i].number != NULL) return parse_number(value, options[i].number);
        if (options[i].decimal != NULL) return parse_decimal(value, options[i].decimal);
        return (*options[i].text = value) != NULL;
    }
    return false;
}

bool od_parse(int argc, char *const *argv, od_arguments *to, const char **wrong) {
    for (int i = 1; i < argc; i++) {
        *wrong = argv[i];
        if (argv[i][0] != '-' && to->bundle == NULL) to->bundle = argv[i];
        else if (i + 1 >= argc || !parse_option(argv[i], argv[i + 1], to)) return false;
        else i++;
    }
    *wrong = NULL;
    to->sampling.stop_tokens = to->stop_tokens;
    to->sampling.stop_strings = to->stop_strings;
    return to->bundle != NULL && (to->tokens == NULL) != (to->prompt == NULL);
}
