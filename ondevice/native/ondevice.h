/* ondevice: run a compiled language model.
 *
 * An engine owns the weights, the KV cache and all threads; conversations are its clients. The
 * engine steps all active conversations together. Generation is pulled: submit tokens, then read
 * what the model says. What one conversation has computed is not computed again for another that
 * starts with the same tokens, nor for the next turn; the results are the same bits.
 *
 *     od_engine engine;
 *     od_conversation conversation;
 *     od_error error;
 *     if (od_engine_open(model, fd, 0, bytes, NULL, &engine, &error) != OD_OK) puts(error.text);
 *     od_conversation_open(engine, &conversation, &error);
 *     od_submit(conversation, prompt, n, &sampling, &error);
 *     do status = od_read(conversation, tokens, 16, 100, &count, &error), show(tokens, count);
 *     while (status == OD_OK || status == OD_TIMEOUT);
 *
 * Every function may be called from any thread. Handles are numbers, not pointers: one that has
 * been closed is refused with OD_CLOSED, never followed. A process made by fork cannot use the
 * engines of its parent (OD_FORKED). `error` may be NULL; it is written when a call does not
 * return OD_OK or OD_TIMEOUT, as one sentence with the numbers that matter.
 */
#ifndef ONDEVICE_H
#define ONDEVICE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OD_API_VERSION 4

#if defined(_WIN32)
#define OD_API __declspec(dllexport)
#else
#define OD_API __attribute__((visibility("default")))
#endif

typedef enum od_status {
    OD_OK = 0,
    OD_TIMEOUT = 1,      /* od_read: nothing to read yet */
    OD_STOP = 2,         /* od_read: the answer ended with a stop token or a stop string */
    OD_LENGTH = 3,       /* od_read: max_tokens have been generated */
    OD_CANCELLED = 4,    /* ended by od_cancel */
    OD_CONTEXT_FULL = 5, /* the conversation has reached the model's context; nothing is lost */
    OD_KV_FULL = 6,      /* no free KV blocks; nothing is lost, od_submit again when some are */
    OD_EXPIRED = 7,      /* ended by timeout_ms of od_sampling; nothing is lost */
    OD_INVALID = -1,     /* an argument is out of its range */
    OD_BUSY = -2,        /* the conversation is generating; read to the end or cancel first */
    OD_CLOSED = -3,      /* the engine or conversation has been closed */
    OD_FORKED = -4,      /* the engine belongs to the parent process */
    OD_MEMORY = -5,      /* the system refused memory or threads */
    OD_MODEL = -6,       /* the compiled model is of another format version, or damaged */
    OD_WEIGHTS = -7,     /* the weights file is damaged, or of another model */
    OD_CPU = -8,         /* this CPU lacks what the model was compiled for */
    OD_NUMERIC = -9,     /* the model computed logits that are not numbers */
    OD_FILE = -10        /* a saved conversation is damaged, or of another model */
} od_status;

typedef struct od_error {
    char text[256]; /* UTF-8, zero-terminated */
} od_error;

typedef uint64_t od_engine;
typedef uint64_t od_conversation;
typedef uint64_t od_tokenizer;

/* The descriptor that a compiled model exports as od_model_<abi>. */
struct od_model;

/* Zero in a field means its default. */
typedef struct od_options {
    int32_t threads;       /* default: the cores this process may use */
    int32_t conversations; /* open at the same time; default 16 */
    int32_t kv_blocks;     /* of 32 tokens, reserved now, paged in when used;
                              default: 4 conversations of full length */
    const char *variant;   /* CPU variant by name; default: the best this CPU supports */
    int32_t draft_tokens;  /* guessed from the conversation and checked in one step, which changes
                              the speed and never the tokens; default: as many as pay off,
                              -1: none, n: n wherever there is a guess; at most 15 */
} od_options;

typedef struct od_engine_info {
    int32_t vocab_size;
    int32_t context_tokens;
    int32_t prefill_chunk_tokens; /* tokens computed per step at most */
    int32_t logit_rows;           /* rows of logits per step at most */
    int32_t threads;
    int32_t conversations;        /* open now */
    int32_t kv_blocks;
    int32_t kv_blocks_free;       /* held by no conversation */
    int32_t kv_blocks_cached;     /* of them kept, until needed, for who submits the same tokens */
    const char *model;
    const char *variant;
} od_engine_info;

#define OD_STOP_TOKENS 16
#define OD_STOP_STRINGS 16
#define OD_STOP_STRING_BYTES 1024
#define OD_LOGIT_BIASES 1024
#define OD_TOP_LOGPROBS 20

typedef struct od_logit_bias {
    int32_t token;
    float bias; /* within -1000000..1000000; -100 bans a token for all practical purposes */
} od_logit_bias;

typedef struct od_stop_string {
    const char *text; /* UTF-8 */
    int32_t bytes;    /* 1..OD_STOP_STRING_BYTES */
} od_stop_string;

/* How to choose the next token from the model's logits. Zero in a field means its default, which
 * changes nothing, so that {.max_tokens = n} is greedy. The steps, in the order in which they apply
 * (that of Hugging Face transformers):
 *
 *     logit_bias            added to the logits of some tokens
 *     repetition_penalty    logits of tokens in the last `penalty_tokens` of the conversation are
 *                           divided by it, multiplied where negative (CTRL, arXiv 1909.05858)
 *     presence_penalty,     subtracted from the logits of tokens that were generated since
 *     frequency_penalty     od_submit: once, and for each time (OpenAI's API)
 *     temperature           divides the logits; 0 takes the likeliest token and skips the rest
 *     top_k                 the k likeliest (Fan et al. 2018, arXiv 1805.04833)
 *     top_p                 the fewest likeliest that together have at least probability p
 *                           (nucleus; Holtzman et al. 2019, arXiv 1904.09751)
 *     min_p                 those at least p times as likely as the likeliest (arXiv 2407.01082)
 *     typical_p             the fewest that together have at least probability p, first those whose
 *                           information is closest to the entropy (arXiv 2202.00666)
 *
 * Each filter sees the distribution that the one before has left, brought back to sum 1. Among
 * equals the lower token number counts as likelier. At least one token is always left. */
typedef struct od_sampling {
    int32_t max_tokens;         /* 0: compute the tokens and generate nothing */
    float temperature;          /* 0: the likeliest token, the lowest number among equals */
    uint64_t seed;              /* same seed, same tokens: on every device, in any company */
    const int32_t *stop_tokens; /* end the answer; not delivered, not kept in the conversation */
    int32_t stop_token_count;   /* at most OD_STOP_TOKENS */
    int32_t top_k;              /* default: all */
    float top_p;                /* 0..1; default 1: all */
    float min_p;                /* 0..1; default 0: all */
    float typical_p;            /* 0..1; default 1: all */
    float repetition_penalty;   /* 0.01..100; default 1: none */
    float presence_penalty;     /* -100..100; default 0: none */
    float frequency_penalty;    /* -100..100; default 0: none */
    int32_t penalty_tokens;     /* the penalties look at so many of the last; default: all */
    int32_t logit_bias_count;   /* at most OD_LOGIT_BIASES */
    const od_logit_bias *logit_bias;
    /* 0: none; 1: of each token generated, for od_read_logprobs; 1 + n: also of the n likeliest, at
     * most OD_TOP_LOGPROBS. */
    int32_t logprobs;
    int32_t timeout_ms;         /* end with OD_EXPIRED after so long; default: never */
    /* For od_read_text and stop strings; 0: the answer is tokens only. The tokenizer must stay open
     * until the answer has ended. */
    od_tokenizer tokenizer;
    uint32_t text_flags;        /* of the text, as for od_text_stream_open */
    /* Text that ends the answer, wherever tokens begin and end in it: the first that is complete,
     * of several the longest. It is not delivered, and the conversation keeps what comes before it:
     * where a token lies on both sides, the part before is encoded anew (left out, if no tokens say
     * exactly that), so that the next turn continues the text that was shown. */
    int32_t stop_string_count;  /* at most OD_STOP_STRINGS */
    const od_stop_string *stop_strings;
} od_sampling;

typedef struct od_stats { /* of the last od_submit or od_logits */
    int32_t prompt_tokens;      /* held when it began, history included; in the end the sum of: */
    int32_t own_tokens;         /* in the KV cache from earlier turns, or from before a fork */
    int32_t shared_tokens;      /* found in the KV cache, mostly of other conversations */
    int32_t computed_tokens;
    int32_t generated_tokens;
    double first_token_ms;      /* from the call to the first generated token; 0: none yet */
    double tokens_per_second;   /* after the first generated token; 0: fewer than two */
    int32_t drafted_tokens;     /* guessed and checked, see od_options */
    int32_t accepted_tokens;    /* of them right */
    int64_t total_reused_tokens;   /* own and shared, since the conversation was opened */
    int64_t total_computed_tokens; /* prompts and generated, since it was opened */
} od_stats;

/* OD_API_VERSION of the library. */
OD_API uint32_t od_version(void);

/* The English name of a status, e.g. "context full". */
OD_API const char *od_status_name(od_status status);

/* Open a model over its weights: `length` bytes at `offset` (a multiple of 4) of the open file
 * `fd`, which may be closed afterwards and must not be changed. `model` must outlive the engine. */
OD_API od_status od_engine_open(const struct od_model *model, int fd, int64_t offset,
                                int64_t length, const od_options *options, od_engine *engine,
                                od_error *error);

/* Stop all work, let waiting calls return OD_CLOSED, join all threads, free everything. */
OD_API od_status od_engine_close(od_engine engine, od_error *error);

OD_API od_status od_engine_describe(od_engine engine, od_engine_info *info, od_error *error);

OD_API od_status od_conversation_open(od_engine engine, od_conversation *conversation,
                                      od_error *error);

/* Open a conversation that holds what another one at rest holds, without a copy: blocks are shared
 * until one of the two writes to them. From then on neither knows of the other. */
OD_API od_status od_fork(od_conversation conversation, od_conversation *fork, od_error *error);

/* Cancel what it generates and free its KV blocks; full ones are kept for others while there is
 * room. */
OD_API od_status od_conversation_close(od_conversation conversation, od_error *error);

/* The number of tokens that the conversation holds: submitted and generated. */
OD_API od_status od_conversation_tokens(od_conversation conversation, int32_t *tokens,
                                        od_error *error);

/* What was reused, what was computed and how fast; while it generates, so far. */
OD_API od_status od_conversation_stats(od_conversation conversation, od_stats *stats,
                                       od_error *error);

/* Forget all tokens of a conversation at rest but the first `tokens`. */
OD_API od_status od_rewind(od_conversation conversation, int32_t tokens, od_error *error);

/* Append n tokens to the conversation and start to generate. What an earlier call left unread is
 * dropped (it stays in the conversation). n = 0 continues from where the conversation stands, e.g.
 * after OD_LENGTH, OD_CANCELLED or OD_KV_FULL. A submit that is refused has changed nothing. */
OD_API od_status od_submit(od_conversation conversation, const int32_t *tokens, int32_t n,
                           const od_sampling *sampling, od_error *error);

/* Wait for at most timeout_ms (negative: for ever) until there is something to read, then move up
 * to `capacity` tokens to `tokens`. OD_OK: *count tokens, read on. OD_TIMEOUT: none yet. Any other
 * status ends the generation, with *count = 0, and is repeated until the next submit. Where tokens
 * take less than a millisecond, several come at a time. */
OD_API od_status od_read(od_conversation conversation, int32_t *tokens, int32_t capacity,
                         int32_t timeout_ms, int32_t *count, od_error *error);

/* The same as text: up to `capacity` bytes (at least 4) of UTF-8 that end with a whole character.
 * What may turn out to be the start of a stop string is held back until it is known. The pieces
 * join to what od_decode makes of the tokens. Text and tokens are read independently. OD_INVALID:
 * the answer was submitted without a tokenizer. */
OD_API od_status od_read_text(od_conversation conversation, char *text, int64_t capacity,
                              int32_t timeout_ms, int64_t *bytes, od_error *error);

typedef struct od_logprob {
    int32_t token;
    float logprob; /* natural logarithm of its probability, 0 or less */
} od_logprob;

typedef struct od_token_logprobs {
    od_logprob chosen;
    int32_t top_count;
    od_logprob top[OD_TOP_LOGPROBS]; /* the likeliest first */
} od_token_logprobs;

/* od_read with the logprobs that od_submit was asked for: log softmax of the model's own logits,
 * before any step of od_sampling. Tokens that say the part of a token before a stop string have
 * that token's logprobs at the first of them, and logprob 0 and no others at the rest. OD_INVALID:
 * none were asked for. */
OD_API od_status od_read_logprobs(od_conversation conversation, od_token_logprobs *tokens,
                                  int32_t capacity, int32_t timeout_ms, int32_t *count,
                                  od_error *error);

/* End the generation after the current step; od_read delivers the rest, then OD_CANCELLED. */
OD_API od_status od_cancel(od_conversation conversation, od_error *error);

/* Append n tokens and wait for the logits of all of them: logits[n * vocab_size], row i for what
 * follows tokens[i]. */
OD_API od_status od_logits(od_conversation conversation, const int32_t *tokens, int32_t n,
                           float *logits, od_error *error);

/* ---- conversations in files ---- */

/* Write a conversation at rest to `fd`: its tokens, and what was computed for them. The file depends
 * on the model and the tokens alone. */
OD_API od_status od_save(od_conversation conversation, int fd, od_error *error);

/* Open a conversation that holds what was saved: `length` bytes at `offset` (a multiple of 4) of
 * the open file `fd`, which may be closed afterwards and must not be changed, for it is mapped.
 * Fewer than 32 tokens will be computed again. Once restored, and even after the conversation has
 * been closed, others that start with the same tokens share what was computed. OD_FILE: damaged,
 * or saved by another build or with other weights. */
OD_API od_status od_restore(od_engine engine, int fd, int64_t offset, int64_t length,
                            od_conversation *conversation, od_error *error);

/* ---- where the time goes ----
 *
 * Of the launches that a model's program consists of, in the order of its launch table; the number
 * behind the last is that of choosing tokens. Refused with OD_BUSY while a conversation generates. */

typedef struct od_profile_row { /* what one worker did for one launch */
    int32_t launch;
    int32_t worker;
    int64_t runs;    /* steps that it took part in */
    int64_t chunks;  /* of the launch's tasks that this worker did */
    int64_t busy_ns; /* doing them */
    int64_t wait_ns; /* before, until others had finished earlier launches */
} od_profile_row;

typedef struct od_profile_event { /* one run of it; times by the monotonic clock */
    int32_t launch;
    int32_t worker;
    int64_t chunks;
    int64_t arrived_ns; /* from here on it waits */
    int64_t begin_ns;
    int64_t end_ns;
} od_profile_event;

/* Count all steps from now on, from zero, and keep the last `events` runs of each worker. */
OD_API od_status od_profile_start(od_engine engine, int32_t events, od_error *error);

/* Count no more, and forget. */
OD_API od_status od_profile_stop(od_engine engine, od_error *error);

/* Move the rows with runs, launch by launch, to `rows`, at most `capacity`; *count is how many there
 * are, also where that is more. OD_INVALID: no profile has been started. */
OD_API od_status od_profile_read(od_engine engine, od_profile_row *rows, int64_t capacity,
                                 int64_t *count, od_error *error);

/* The same for the runs that were kept, worker by worker, the oldest first. */
OD_API od_status od_profile_events(od_engine engine, od_profile_event *events, int64_t capacity,
                                   int64_t *count, od_error *error);

/* ---- tokenizer: text to tokens and back ----
 *
 * A tokenizer needs no engine and may be used from any thread, by several at once. All text is
 * UTF-8, lengths are in bytes, and nothing is zero-terminated. */

typedef struct od_tokenizer_info {
    int32_t vocab_size;  /* tokens are 0 .. vocab_size - 1 */
    int32_t piece_bytes; /* what od_text_stream_add writes at most */
} od_tokenizer_info;

/* Flags: add what the model expects around a text, such as its first token; the text was typed by a
 * user, so control tokens in it are plain text. */
#define OD_ENCODE_SPECIAL 1
#define OD_ENCODE_CONTENT 2
/* Special tokens have no text; text stands before, so a leading space is part of the text. */
#define OD_DECODE_SKIP_SPECIAL 4
#define OD_DECODE_CONTINUES 8

/* Open `bytes` of a compiled tokenizer at `data`, which must stay as it is until it is closed (at
 * an address that is no multiple of 8 it is copied). OD_MODEL: the data is damaged. */
OD_API od_status od_tokenizer_open(const void *data, int64_t bytes, od_tokenizer *tokenizer,
                                   od_error *error);

/* Free the tokenizer, when the last call inside it has returned. */
OD_API od_status od_tokenizer_close(od_tokenizer tokenizer, od_error *error);

OD_API od_status od_tokenizer_describe(od_tokenizer tokenizer, od_tokenizer_info *info,
                                       od_error *error);

/* Move the tokens of a text to `tokens`, at most `capacity`; *count is how many there are, also
 * where that is more. OD_INVALID: the text is no UTF-8. */
OD_API od_status od_encode(od_tokenizer tokenizer, const char *text, int64_t bytes, uint32_t flags,
                           int32_t *tokens, int64_t capacity, int64_t *count, od_error *error);

/* Move the text of n tokens to `text`, at most `capacity` bytes; *bytes is how many there are, also
 * where that is more. Bytes that make no character become U+FFFD. OD_INVALID: a token is none. */
OD_API od_status od_decode(od_tokenizer tokenizer, const int32_t *tokens, int64_t n, uint32_t flags,
                           char *text, int64_t capacity, int64_t *bytes, od_error *error);

/* Text of tokens as they come: what has been handed out is always the start of what od_decode
 * makes of all tokens, and ends with a whole character. Plain data: copy it to fork a text.
 * Tokens of single bytes are text only if all of a run are, so a run is held until it ends (or is
 * as long as `bytes`: then its whole characters are shown, here and in od_decode). */
typedef struct od_text_stream {
    od_tokenizer tokenizer;
    uint32_t flags;
    uint32_t stripped;  /* leading characters still to be removed */
    uint32_t held;      /* bytes that are not yet a character, or may turn out to be none */
    uint32_t damaged;   /* the bytes of this run make no characters */
    uint8_t bytes[4096];
} od_text_stream;

OD_API od_status od_text_stream_open(od_tokenizer tokenizer, uint32_t flags, od_text_stream *stream,
                                     od_error *error);

/* The text that `token` completes: 0 or more bytes, at most piece_bytes. A refused call has changed
 * nothing. */
OD_API od_status od_text_stream_add(od_text_stream *stream, int32_t token, char *text,
                                    int64_t capacity, int64_t *bytes, od_error *error);

/* What was held back; half a character becomes U+FFFD. */
OD_API od_status od_text_stream_finish(od_text_stream *stream, char *text, int64_t capacity,
                                       int64_t *bytes, od_error *error);

/* ---- chat templates: messages to tokens ---- */

typedef struct od_message {
    const char *role; /* zero-terminated: "system", "user", "assistant" or "tool" */
    const char *content;
    int64_t bytes; /* of content */
} od_message;

/* Flags: end with what makes the model answer; where the template knows of thinking, the answer
 * shall come at once. */
#define OD_CHAT_GENERATE 1
#define OD_CHAT_NO_THINKING 2

/* The prompt of a conversation as text, in the manner of od_decode; `chat_template` is a compiled
 * chat template of `template_bytes`, and `local_time` seconds since 1970 on the local clock, for
 * templates that write the date. OD_INVALID: the template has no place for a message. */
OD_API od_status od_chat_render(const void *chat_template, int64_t template_bytes,
                                const od_message *messages, int32_t n, uint32_t flags,
                                int64_t local_time, char *text, int64_t capacity, int64_t *bytes,
                                od_error *error);

/* The same as tokens, in the manner of od_encode. No content becomes a control token. */
OD_API od_status od_chat_encode(od_tokenizer tokenizer, const void *chat_template,
                                int64_t template_bytes, const od_message *messages, int32_t n,
                                uint32_t flags, int64_t local_time, int32_t *tokens,
                                int64_t capacity, int64_t *count, od_error *error);

#ifdef __cplusplus
}
#endif
#endif
