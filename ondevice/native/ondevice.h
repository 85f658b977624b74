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

#define OD_API_VERSION 2

#if defined(_WIN32)
#define OD_API __declspec(dllexport)
#else
#define OD_API __attribute__((visibility("default")))
#endif

typedef enum od_status {
    OD_OK = 0,
    OD_TIMEOUT = 1,      /* od_read: nothing to read yet */
    OD_STOP = 2,         /* od_read: the model ended its turn with a stop token */
    OD_LENGTH = 3,       /* od_read: max_tokens have been generated */
    OD_CANCELLED = 4,    /* ended by od_cancel */
    OD_CONTEXT_FULL = 5, /* the conversation has reached the model's context; nothing is lost */
    OD_KV_FULL = 6,      /* no free KV blocks; nothing is lost, od_submit again when some are */
    OD_INVALID = -1,     /* an argument is out of its range */
    OD_BUSY = -2,        /* the conversation is generating; read to the end or cancel first */
    OD_CLOSED = -3,      /* the engine or conversation has been closed */
    OD_FORKED = -4,      /* the engine belongs to the parent process */
    OD_MEMORY = -5,      /* the system refused memory or threads */
    OD_MODEL = -6,       /* the compiled model is of another format version, or damaged */
    OD_WEIGHTS = -7,     /* the weights file is damaged, or of another model */
    OD_CPU = -8,         /* this CPU lacks what the model was compiled for */
    OD_NUMERIC = -9      /* the model computed logits that are not numbers */
} od_status;

typedef struct od_error {
    char text[256]; /* UTF-8, zero-terminated */
} od_error;

typedef uint64_t od_engine;
typedef uint64_t od_conversation;

/* The descriptor that a compiled model exports as od_model_<abi>. */
struct od_model;

/* Zero in a field means its default. */
typedef struct od_options {
    int32_t threads;       /* default: the cores this process may use */
    int32_t conversations; /* open at the same time; default 16 */
    int32_t kv_blocks;     /* of 32 tokens, reserved now, paged in when used;
                              default: 4 conversations of full length */
    const char *variant;   /* CPU variant by name; default: the best this CPU supports */
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

typedef struct od_sampling {
    int32_t max_tokens;         /* 0: compute the tokens and generate nothing */
    float temperature;          /* 0: the likeliest token, the lowest number among equals */
    uint64_t seed;              /* same seed, same tokens: on every device, in any company */
    const int32_t *stop_tokens; /* end the turn; not delivered, not kept in the conversation */
    int32_t stop_token_count;   /* at most OD_STOP_TOKENS */
} od_sampling;

#define OD_STOP_TOKENS 16

typedef struct od_stats { /* of the last od_submit or od_logits */
    int32_t prompt_tokens;      /* held when it began, history included; in the end the sum of: */
    int32_t own_tokens;         /* in the KV cache from earlier turns, or from before a fork */
    int32_t shared_tokens;      /* found in the KV cache, mostly of other conversations */
    int32_t computed_tokens;
    int32_t generated_tokens;
    double first_token_ms;      /* from the call to the first generated token; 0: none yet */
    double tokens_per_second;   /* after the first generated token; 0: fewer than two */
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
 * status ends the generation, with *count = 0, and is repeated until the next submit. */
OD_API od_status od_read(od_conversation conversation, int32_t *tokens, int32_t capacity,
                         int32_t timeout_ms, int32_t *count, od_error *error);

/* End the generation after the current step; od_read delivers the rest, then OD_CANCELLED. */
OD_API od_status od_cancel(od_conversation conversation, od_error *error);

/* Append n tokens and wait for the logits of all of them: logits[n * vocab_size], row i for what
 * follows tokens[i]. */
OD_API od_status od_logits(od_conversation conversation, const int32_t *tokens, int32_t n,
                           float *logits, od_error *error);

/* ---- tokenizer: text to tokens and back ----
 *
 * A tokenizer needs no engine and may be used from any thread, by several at once. All text is
 * UTF-8, lengths are in bytes, and nothing is zero-terminated. */

typedef uint64_t od_tokenizer;

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
