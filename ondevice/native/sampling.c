#include "sampling.h"

#include "platform.h"
#include "tokenizer_decode.h"

static bool within(float value, float low, float high) {
    return value >= low && value <= high; /* NaN is not */
}

static od_status check_numbers(const od_sampling *s, od_error *error) {
    if (s->max_tokens < 0)
        return od_fail(error, OD_INVALID, "max_tokens = %d is negative", s->max_tokens);
    if (!within(s->temperature, 0.0F, 1e6F))
        return od_fail(error, OD_INVALID, "temperature is not a number within 0..1000000");
    if (s->top_k < 0) return od_fail(error, OD_INVALID, "top_k = %d is negative", s->top_k);
    if (!within(s->top_p, 0.0F, 1.0F))
        return od_fail(error, OD_INVALID, "top_p is not a number within 0..1");
    if (!within(s->min_p, 0.0F, 1.0F))
        return od_fail(error, OD_INVALID, "min_p is not a number within 0..1");
    if (!within(s->typical_p, 0.0F, 1.0F))
        return od_fail(error, OD_INVALID, "typical_p is not a number within 0..1");
    if (s->repetition_penalty != 0.0F && !within(s->repetition_penalty, 0.01F, 100.0F))
        return od_fail(error, OD_INVALID, "repetition_penalty is not a number within 0.01..100");
    if (!within(s->presence_penalty, -100.0F, 100.0F))
        return od_fail(error, OD_INVALID, "presence_penalty is not a number within -100..100");
    if (!within(s->frequency_penalty, -100.0F, 100.0F))
        return od_fail(error, OD_INVALID, "frequency_penalty is not a number within -100..100");
    if (s->penalty_tokens < 0)
        return od_fail(error, OD_INVALID, "penalty_tokens = %d is negative", s->penalty_tokens);
    if (s->logprobs < 0 || s->logprobs > 1 + OD_TOP_LOGPROBS)
        return od_fail(error, OD_INVALID, "logprobs are possible of the chosen token and of 0 to "
                       "%d of the likeliest", OD_TOP_LOGPROBS);
    if (s->timeout_ms < 0)
        return od_fail(error, OD_INVALID, "the timeout is no number of milliseconds, or negative");
    return OD_OK;
}

static od_status check_tokens(const od_sampling *s, const od_model *model, od_error *error) {
    if (s->stop_token_count < 0 || s->stop_token_count > OD_STOP_TOKENS)
        return od_fail(error, OD_INVALID, "%d stop tokens, at most %d are possible",
                       s->stop_token_count, OD_STOP_TOKENS);
    if (s->logit_bias_count < 0 || s->logit_bias_count > OD_LOGIT_BIASES)
        return od_fail(error, OD_INVALID, "logit_bias of %d tokens, at most %d are possible",
                       s->logit_bias_count, OD_LOGIT_BIASES);
    for (int32_t i = 0; i < s->stop_token_count; i++)
        if (s->stop_tokens[i] < 0 || s->stop_tokens[i] >= model->vocab_size)
            return od_fail(error, OD_INVALID, "stop token %d is %d, the vocabulary is 0..%d", i,
                           s->stop_tokens[i], model->vocab_size - 1);
    for (int32_t i = 0; i < s->logit_bias_count; i++) {
        int32_t token = s->logit_bias[i].token;
        if (token < 0 || token >= model->vocab_size)
            return od_fail(error, OD_INVALID, "logit_bias of token %d, the vocabulary is 0..%d",
                           token, model->vocab_size - 1);
        if (!within(s->logit_bias[i].bias, -1e6F, 1e6F))
            return od_fail(error, OD_INVALID, "the logit_bias of token %d is not a number within "
                           "-1000000..1000000", token);
    }
    return OD_OK;
}

static od_status check_stop_strings(const od_sampling *s, od_error *error) {
    if (s->stop_string_count < 0 || s->stop_string_count > OD_STOP_STRINGS)
        return od_fail(error, OD_INVALID, "%d stop strings, at most %d are possible",
                       s->stop_string_count, OD_STOP_STRINGS);
    if (s->stop_string_count > 0 && s->tokenizer == 0)
        return od_fail(error, OD_INVALID, "stop strings need a tokenizer: give one to od_submit");
    for (int32_t i = 0; i < s->stop_string_count; i++) {
        const od_stop_string *stop = &s->stop_strings[i];
        if (stop->bytes < 1 || stop->bytes > OD_STOP_STRING_BYTES)
            return od_fail(error, OD_INVALID, "stop string %d has %d bytes, 1 to %d are possible",
                           i, stop->bytes, OD_STOP_STRING_BYTES);
        if (od_find_invalid((const uint8_t *)stop->text, stop->bytes) >= 0)
            return od_fail(error, OD_INVALID, "stop string %d is no UTF-8", i);
    }
    return OD_OK;
}

od_status od_sampling_check(const od_sampling *sampling, const od_model *model,
                            od_tokenizer_info *tokenizer, od_error *error) {
    od_status status = check_numbers(sampling, error);
    if (status == OD_OK) status = check_tokens(sampling, model, error);
    if (status == OD_OK) status = check_stop_strings(sampling, error);
    *tokenizer = (od_tokenizer_info){0, 0};
    if (status != OD_OK || sampling->tokenizer == 0) return status;
    return od_tokenizer_describe(sampling->tokenizer, tokenizer, error);
}
