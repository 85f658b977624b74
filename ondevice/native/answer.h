/* What is kept of a request while it is answered: how to sample, and the text and the logprobs that
 * have not been read. The engine's lock guards it, but for `sampling` and `logprobs`, which the
 * threads that sample read and write while the conversation is active. */
#ifndef OD_ANSWER_H
#define OD_ANSWER_H

#include "platform.h"
#include "stops.h"

/* Places in the text are bytes since od_submit. A border lies after a token that ends with a whole
 * character. */
typedef struct od_border {
    int64_t place;
    int32_t tokens; /* of the conversation before it */
} od_border;

typedef struct od_answer_text {
    od_text_stream stream;
    int32_t vocab_size; /* of the tokenizer */
    int32_t piece_bytes;
    char *data; /* [capacity], from `start` to `end`; grows, and stays for the next request */
    size_t capacity;
    int64_t start;
    int64_t taken; /* has been read */
    int64_t safe;  /* may be read: what follows may be a stop string */
    int64_t end;
    bool stopped; /* a stop string is complete; `end` is its end */
    od_stops stops;
    od_border kept; /* the last border up to `safe` */
    int32_t border_count;
    od_border borders[OD_STOP_STRING_BYTES]; /* later ones, the nearest first */
} od_answer_text;

typedef struct od_answer {
    od_sampling sampling; /* its arrays are those below */
    int32_t stop_tokens[OD_STOP_TOKENS];
    od_logit_bias logit_bias[OD_LOGIT_BIASES];
    int32_t prompt_tokens; /* held when it began */
    int32_t logprob_rows;
    od_logprob *logprobs; /* [logprob_rows][sampling.logprobs] */
    od_answer_text text;
} od_answer;

/* ---- a request begins and ends ---- */

/* Room for the logprobs of `rows` tokens; NULL where none are wanted. */
od_status od_answer_reserve(const od_sampling *sampling, int32_t rows, od_logprob **logprobs,
                            od_error *error);
void od_answer_release(const od_sampling *sampling, int32_t rows, od_logprob *logprobs);
/* Take over a request that has been checked, and the room for its logprobs. */
void od_answer_open(od_answer *answer, const od_sampling *sampling,
                    const od_tokenizer_info *tokenizer, int32_t prompt_tokens, int32_t rows,
                    od_logprob *logprobs);
/* Free what is held. */
void od_answer_close(od_answer *answer);

/* ---- text ---- */

/* Add a token, after which the conversation has `tokens`. OD_STOP: a stop string is complete.
 * OD_MEMORY or OD_CLOSED: there is no memory, or no tokenizer any more. */
od_status od_answer_add(od_answer *answer, int32_t token, int32_t tokens);
/* No token follows. OD_STOP: what was held back ends with a stop string. */
od_status od_answer_finish(od_answer *answer);
/* After OD_STOP: the tokens of the text between the last border that is kept and the stop string,
 * at most `capacity`; 0 where there is no such text or no tokens say exactly that. */
int32_t od_answer_rest(const od_answer *answer, int32_t *tokens, int32_t capacity);
/* Move whole characters that may be read, up to `capacity` bytes. */
int64_t od_answer_take(od_answer *answer, char *text, int64_t capacity);
/* Forget what has not been read. */
void od_answer_drop(od_answer *answer);

/* ---- logprobs ---- */

/* Where those of the next token go, after `generated`; NULL where none are wanted. */
od_logprob *od_answer_logprobs(const od_answer *answer, int32_t generated);
/* Those of the token at `place` of the conversation. */
void od_answer_show_logprobs(const od_answer *answer, int32_t place, int32_t token,
                             od_token_logprobs *shown);
/* The tokens of the conversation from `first` to `end` have none. */
void od_answer_forget_logprobs(od_answer *answer, int32_t first, int32_t end);

#endif
