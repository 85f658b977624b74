/* Guessing the next tokens from the conversation itself: what followed the same words before
 * (prompt lookup decoding; Yang et al. 2023, "Inference with Reference", arXiv 2304.04487). A step
 * checks all of a guess at once, and what the model would not have said is forgotten, so guesses
 * change the speed and never the tokens. */
#ifndef OD_DRAFT_H
#define OD_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#define OD_DRAFT_MOST 15   /* tokens of a guess */
#define OD_DRAFT_ROWS 32   /* rows of a step that guesses are still added to */
#define OD_DRAFT_HEADS 4096
#define OD_DRAFT_KINDS 4   /* of guesses, by how many tokens before them are the same */

/* Where pairs of tokens stood: chains from the last place to earlier ones. */
typedef struct od_draft_index {
    int32_t *heads;  /* [OD_DRAFT_HEADS] the last place of a pair with this hash */
    int32_t *before; /* [context_tokens] the place before it */
    int32_t indexed; /* tokens that have been entered */
} od_draft_index;

/* How a conversation's guesses did, so far. */
typedef struct od_draft_record {
    float right[OD_DRAFT_KINDS]; /* tokens that were as guessed, */
    float tried[OD_DRAFT_KINDS]; /* of those compared, up to the first wrong one */
    int32_t unused[OD_DRAFT_MOST]; /* a guess that was not worth a try, compared all the same */
    int32_t unused_count;
    int32_t unused_right;
    int32_t unused_kind;
} od_draft_record;

typedef struct od_draft {
    int32_t count;
    int32_t kind;
} od_draft;

/* Nanoseconds of a step by its rows, 0 where none was measured. */
typedef struct od_step_costs {
    float ns[OD_DRAFT_ROWS + 1];
    uint32_t refused; /* guesses that seemed too dear */
} od_step_costs;

/* Write a guess of at most `most` tokens behind the first `length`; none has count 0. */
od_draft od_draft_find(od_draft_index *index, int32_t *tokens, int32_t length, int32_t most);
/* The index must not know of tokens from `length` on. */
void od_draft_forget(od_draft_index *index, int32_t length);

/* How many tokens of a guess a step should check that has `rows` rows without them. */
int32_t od_draft_worth(const od_draft_record *record, od_step_costs *costs, od_draft draft,
                       int32_t rows);
/* Of `checked` tokens of a guess the first `right` were so. */
void od_draft_note(od_draft_record *record, int32_t kind, int32_t checked, int32_t right);
/* Remember a guess at `tokens` that will not be checked, and compare it with what is said. */
void od_draft_set_aside(od_draft_record *record, od_draft draft, const int32_t *tokens);
void od_draft_compare(od_draft_record *record, int32_t token);

void od_step_measured(od_step_costs *costs, int32_t rows, int64_t ns);

#endif
