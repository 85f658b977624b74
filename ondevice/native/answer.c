#include "answer.h"

#include "message.h"

/* ---- a request begins and ends ---- */

static size_t logprob_bytes(const od_sampling *sampling, int32_t rows) {
    return (size_t)sampling->logprobs * (size_t)rows * sizeof(od_logprob);
}

od_status od_answer_reserve(const od_sampling *sampling, int32_t rows, od_logprob **logprobs,
                            od_error *error) {
    size_t bytes = logprob_bytes(sampling, rows);
    *logprobs = bytes == 0 ? NULL : od_reserve(bytes);
    if (bytes == 0 || *logprobs != NULL) return OD_OK;
    return od_fail(error, OD_MEMORY, "no memory for the logprobs of %d tokens: set max_tokens",
                   rows);
}

void od_answer_release(const od_sampling *sampling, int32_t rows, od_logprob *logprobs) {
    if (logprobs != NULL) od_release(logprobs, logprob_bytes(sampling, rows));
}

void od_answer_close(od_answer *answer) {
    od_answer_release(&answer->sampling, answer->logprob_rows, answer->logprobs);
    answer->logprobs = NULL;
    if (answer->text.data != NULL) od_release(answer->text.data, answer->text.capacity);
    answer->text.data = NULL;
    answer->text.capacity = 0;
    answer->sampling = (od_sampling){0};
    answer->text.taken = answer->text.safe = answer->text.start = answer->text.end = 0;
    answer->text.stops.count = 0;
}

static float or_default(float value, float by_default) { return value == 0.0F ? by_default : value; }

static void open_text(od_answer_text *text, const od_sampling *sampling,
                      const od_tokenizer_info *tokenizer, int32_t prompt_tokens) {
    text->vocab_size = tokenizer->vocab_size;
    text->piece_bytes = tokenizer->piece_bytes;
    text->start = text->taken = text->safe = text->end = 0;
    text->kept = (od_border){0, prompt_tokens};
    text->border_count = 0;
    text->stopped = false;
    od_stops_open(&text->stops, sampling->stop_strings, sampling->stop_string_count);
    if (sampling->tokenizer != 0)
        od_text_stream_open(sampling->tokenizer, sampling->text_flags, &text->stream, NULL);
}

void od_answer_open(od_answer *answer, const od_sampling *sampling,
                    const od_tokenizer_info *tokenizer, int32_t prompt_tokens, int32_t rows,
                    od_logprob *logprobs) {
    od_answer_release(&answer->sampling, answer->logprob_rows, answer->logprobs);
    answer->sampling = *sampling;
    answer->sampling.top_p = or_default(sampling->top_p, 1.0F);
    answer->sampling.typical_p = or_default(sampling->typical_p, 1.0F);
    answer->sampling.repetition_penalty = or_default(sampling->repetition_penalty, 1.0F);
    for (int32_t i = 0; i < sampling->stop_token_count; i++)
        answer->stop_tokens[i] = sampling->stop_tokens[i];
    for (int32_t i = 0; i < sampling->logit_bias_count; i++)
        answer->logit_bias[i] = sampling->logit_bias[i];
    answer->sampling.stop_tokens = answer->stop_tokens;
    answer->sampling.logit_bias = answer->logit_bias;
    answer->sampling.stop_strings = NULL; /* the caller's */
    answer->prompt_tokens = prompt_tokens;
    answer->logprob_rows = rows;
    answer->logprobs = logprobs;
    open_text(&answer->text, sampling, tokenizer, prompt_tokens);
}

/* ---- text ---- */

/* Where the text from `place` on stands. */
static char *at(const od_answer_text *text, int64_t place) {
    return text->data + (place - text->start);
}

/* Make room for a piece: forget what has been read and no border needs, then grow. */
static bool make_room(od_answer_text *text) {
    int64_t needed = text->end - text->start + text->piece_bytes;
    if (needed <= (int64_t)text->capacity) return true;
    int64_t first = text->taken < text->kept.place ? text->taken : text->kept.place;
    int64_t bytes = text->end - first;
    size_t capacity = text->capacity;
    char *data = text->data;
    if (bytes + text->piece_bytes > (int64_t)capacity / 2) {
        capacity = 2 * (size_t)(bytes + text->piece_bytes);
        data = od_reserve(capacity);
        if (data == NULL) return false;
    }
    for (int64_t i = 0; i < bytes; i++) data[i] = *at(text, first + i); /* may move down in place */
    if (data != text->data && text->data != NULL) od_release(text->data, text->capacity);
    text->data = data;
    text->capacity = capacity;
    text->start = first;
    return true;
}

/* Keep the borders up to `place`. */
static void keep_borders(od_answer_text *text, int64_t place) {
    int32_t passed = 0;
    while (passed < text->border_count && text->borders[passed].place <= place)
        text->kept = text->borders[passed++];
    text->border_count -= passed;
    for (int32_t i = 0; passed > 0 && i < text->border_count; i++)
        text->borders[i] = text->borders[i + passed];
}

/* `bytes` of text have been written behind the end: look for stop strings in them. */
static od_status scan(od_answer_text *text, int64_t bytes) {
    for (; bytes > 0; bytes--) {
        int32_t found = od_stops_add(&text->stops, *at(text, text->end++));
        if (found == 0) continue;
        text->stopped = true;
        text->safe = text->end - found;
        keep_borders(text, text->safe);
        return OD_STOP;
    }
    text->safe = text->end - od_stops_held(&text->stops);
    keep_borders(text, text->safe);
    return OD_OK;
}

static void add_border(od_answer_text *text, int32_t tokens) {
    if (text->stream.held > 0) return;
    od_border here = {text->end, tokens};
    if (text->safe == here.place) {
        text->kept = here;
    } else {
        int32_t last = text->border_count - 1; /* a token without text moves the border */
        if (last >= 0 && text->borders[last].place == here.place) text->borders[last] = here;
        else text->borders[text->border_count++] = here;
    }
}

od_status od_answer_add(od_answer *answer, int32_t token, int32_t tokens) {
    od_answer_text *text = &answer->text;
    if (answer->sampling.tokenizer == 0) return OD_OK;
    if (!make_room(text)) return OD_MEMORY;
    int64_t bytes = 0, capacity = (int64_t)text->capacity - (text->end - text->start);
    if (token < text->vocab_size) { /* the model may have more tokens than the tokenizer */
        od_status status = od_text_stream_add(&text->stream, token, at(text, text->end), capacity,
                                              &bytes, NULL);
        if (status != OD_OK) return status;
    }
    od_status status = scan(text, bytes);
    if (status == OD_OK) add_border(text, tokens);
    return status;
}

od_status od_answer_finish(od_answer *answer) {
    od_answer_text *text = &answer->text;
    if (answer->sampling.tokenizer == 0) return OD_OK;
    if (text->stopped) return OD_STOP;
    int64_t bytes = 0;
    if (make_room(text))
        od_text_stream_finish(&text->stream, at(text, text->end),
                              (int64_t)text->capacity - (text->end - text->start), &bytes, NULL);
    od_status status = scan(text, bytes);
    if (status == OD_OK) text->safe = text->end;
    return status;
}

/* Encode `bytes` at `text`; 0 tokens unless they decode to exactly `said`. */
static int64_t encode_exactly(od_tokenizer tokenizer, const char *text, int64_t bytes,
                              const char *said, int64_t said_bytes, uint32_t flags,
                              int32_t *tokens, int32_t capacity) {
    char decoded[OD_STOP_STRING_BYTES];
    int64_t count = 0, n = 0;
    if (od_encode(tokenizer, text, bytes, OD_ENCODE_CONTENT, tokens, capacity, &count, NULL) !=
            OD_OK ||
        count > capacity)
        return 0;
    if (od_decode(tokenizer, tokens, count, flags, decoded, sizeof decoded, &n, NULL) != OD_OK ||
        n != said_bytes || memcmp(decoded, said, (size_t)n) != 0)
        return 0;
    return count;
}

int32_t od_answer_rest(const od_answer *answer, int32_t *tokens, int32_t capacity) {
    const od_answer_text *text = &answer->text;
    int64_t bytes = text->safe - text->kept.place;
    if (bytes == 0 || bytes > OD_STOP_STRING_BYTES) return 0;
    const char *rest = at(text, text->kept.place);
    uint32_t flags = text->kept.place > 0 ? OD_DECODE_CONTINUES : answer->sampling.text_flags;
    int64_t count = 0; /* tokenizers that put a space before a text must not be given it */
    for (int64_t skip = 0; count == 0 && skip <= (rest[0] == ' '); skip++)
        count = encode_exactly(answer->sampling.tokenizer, rest + skip, bytes - skip, rest, bytes,
                               flags, tokens, capacity);
    return (int32_t)count;
}

/* ---- reading ---- */

int64_t od_answer_take(od_answer *answer, char *to, int64_t capacity) {
    od_answer_text *text = &answer->text;
    int64_t bytes = text->safe - text->taken;
    if (bytes == 0) return 0;
    const char *from = at(text, text->taken);
    if (bytes > capacity) {
        bytes = capacity;
        while (bytes > 0 && ((uint8_t)from[bytes] & 0xc0) == 0x80) bytes--;
    }
    memcpy(to, from, (size_t)bytes);
    text->taken += bytes;
    return bytes;
}

void od_answer_drop(od_answer *answer) { answer->text.taken = answer->text.safe; }

/* ---- logprobs ---- */

od_logprob *od_answer_logprobs(const od_answer *answer, int32_t generated) {
    if (answer->logprobs == NULL || generated >= answer->logprob_rows) return NULL;
    return answer->logprobs + (size_t)generated * (size_t)answer->sampling.logprobs;
}

void od_answer_show_logprobs(const od_answer *answer, int32_t place, int32_t token,
                             od_token_logprobs *shown) {
    const od_logprob *row = od_answer_logprobs(answer, place - answer->prompt_tokens);
    bool known = row != NULL && row->token >= 0;
    shown->chosen = (od_logprob){token, known ? row->logprob : 0.0F};
    shown->top_count = known ? answer->sampling.logprobs - 1 : 0;
    for (int32_t i = 0; i < shown->top_count; i++) shown->top[i] = row[1 + i];
}

void od_answer_forget_logprobs(od_answer *answer, int32_t first, int32_t end) {
    for (int32_t place = first; place < end; place++) {
        od_logprob *row = od_answer_logprobs(answer, place - answer->prompt_tokens);
        if (row != NULL) row->token = -1;
    }
}
