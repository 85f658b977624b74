/* The engine's insides. `lock` guards everything that is not marked otherwise. */
#ifndef OD_ENGINE_H
#define OD_ENGINE_H

#include "answer.h"
#include "draft.h"
#include "kv_cache.h"
#include "message.h"
#include "platform.h"
#include "profile.h"
#include "program.h"
#include "streaming.h"
#include "threads.h"
#include "weights.h"

#define OD_MAX_CONVERSATIONS 1024

typedef struct od_state { /* of a conversation */
    bool open;
    uint32_t number; /* how often the slot has been opened: stale handles carry another */
    int32_t *tokens; /* [context_tokens] */
    int32_t length;   /* tokens known: submitted and generated */
    int32_t computed; /* of them in the KV cache */
    int32_t unread;   /* first generated token that has not been read */
    od_kv_table table; /* at rest blocks for `computed` tokens, while active for all of the prompt */
    /* The request. While `active` only the engine's thread changes the conversation, except that
     * anybody may set `cancelled`. */
    bool active;
    bool cancelled;
    od_status ending; /* of the last request */
    od_answer *answer;
    int32_t generated;
    float *logits; /* where od_logits wants them, else NULL */
    int32_t needed_from; /* first token that must be computed, its logits are wanted */
    od_draft_index index;
    od_draft_record record;
    od_stats stats; /* the two rates are filled in when somebody asks */
    int64_t submitted_ns;
    int64_t deadline_ns; /* negative: none */
    int64_t first_token_ns;
    int64_t last_token_ns;
} od_state;

/* The part of a step that belongs to one conversation. */
typedef struct od_share {
    od_state *state;
    int32_t rows;
    int32_t first_logit;
    int32_t logit_rows;
    od_draft draft; /* of its tokens the last `count` rows */
    int32_t tokens[OD_DRAFT_MOST + 1]; /* sampled: -1 logits are no numbers */
    int32_t token_count;
} od_share;

typedef struct od_core { /* an engine */
    od_lock lock;
    od_event work;     /* advanced for the engine's thread: something to do */
    od_event progress; /* advanced for waiting callers: something was done */
    od_event callers;  /* calls inside the engine; od_engine_close waits for 0 */
    bool closing;
    od_thread thread;
    const od_model *model;
    od_weights weights;
    od_kv_pool kv;
    od_program program;
    od_streaming streaming;
    od_threads *threads;
    od_profile *profile; /* NULL: nobody asked */
    int32_t thread_count;
    int32_t capacity; /* conversations */
    int32_t draft_tokens; /* of od_options */
    int32_t turn;     /* which conversation comes first in the next step */
    od_state *states; /* [capacity] */
    od_answer *answers; /* [capacity] */
    int32_t *lists;   /* tokens, block tables and indexes of all conversations */
    size_t lists_bytes;
    /* Of the engine's thread alone: */
    od_share *shares; /* [capacity] */
    int32_t share_count;
    int32_t step_rows;
    int32_t step_most; /* rows that the step may have so far */
    int32_t step_logits;
    int32_t step_generating; /* conversations that add a row each, and guesses */
    int32_t draft_rows;      /* of the step */
    od_step_costs costs;
    od_work finish; /* the end of a step: tokens are chosen */
    void *finish_buffers[1];
    int64_t readers_woken_ns;
} od_core;

/* ---- batch.c: one step ---- */

/* Fill the step buffers; false when nobody has work. */
bool od_batch_assemble(od_core *engine);
/* Whether the step has no row of a prompt. */
bool od_batch_generates(const od_core *engine);
/* Compute and sample; called without the lock. */
void od_batch_run(od_core *engine);
/* Hand the results to the conversations. */
void od_batch_deliver(od_core *engine);
/* End the request of a conversation. */
void od_finish(od_core *engine, od_state *state, od_status status);
/* Skip the tokens up to `needed_from` whose blocks are known. */
void od_reuse(od_core *engine, od_state *state);

/* ---- conversation.c ---- */

/* Open a free slot: an empty conversation at rest. */
od_status od_take_slot(od_core *engine, int32_t *slot, od_error *error);

/* ---- handles.c: numbers outside, pointers inside ---- */

od_status od_handle_new(od_core *engine, od_engine *handle, od_error *error);
/* Forget the handle, so that no call enters any more. */
od_status od_handle_remove(od_engine handle, od_core **engine, od_error *error);
/* Wait until no call is inside a removed engine. */
void od_handle_wait_callers(od_core *engine);
od_conversation od_handle_conversation(od_engine engine, int32_t slot, uint32_t number);
/* Enter with the lock held, or refuse. */
od_status od_enter_engine(od_engine handle, od_core **engine, od_error *error);
od_status od_enter(od_conversation handle, od_core **engine, od_state **state, od_error *error);
/* Release the lock and leave; returns `status`. */
od_status od_leave(od_core *engine, od_status status);

#endif
