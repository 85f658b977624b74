#include "draft.h"

#include "platform.h"

enum { LEAST_MATCH = 2, LONGEST_MATCH = 32, LONGEST_CHAIN = 64, NOWHERE = 0 };

/* ---- finding ---- */

/* Places are the positions of a pair's second token, so 0 is none. */
static int32_t *head_of(const od_draft_index *index, const int32_t *tokens, int32_t place) {
    uint64_t pair = (uint64_t)(uint32_t)tokens[place - 1] << 32 | (uint32_t)tokens[place];
    return &index->heads[pair * UINT64_C(0x9e3779b97f4a7c15) >> 52];
}

static void enter(od_draft_index *index, const int32_t *tokens, int32_t length) {
    if (index->indexed == 0) {
        memset(index->heads, 0, OD_DRAFT_HEADS * sizeof(int32_t));
        index->indexed = 1;
    }
    for (; index->indexed < length; index->indexed++) {
        int32_t place = index->indexed, *head = head_of(index, tokens, place);
        int32_t before = *head;
        while (before >= place) before = index->before[before]; /* of tokens forgotten since */
        index->before[place] = before;
        *head = place;
    }
}

static int32_t match(const int32_t *tokens, int32_t place, int32_t last) {
    int32_t same = 0;
    while (same < LONGEST_MATCH && same <= place && tokens[place - same] == tokens[last - same])
        same++;
    return same;
}

od_draft od_draft_find(od_draft_index *index, int32_t *tokens, int32_t length, int32_t most) {
    int32_t last = length - 1, best = LEAST_MATCH - 1, from = NOWHERE;
    if (last < LEAST_MATCH) return (od_draft){0, 0};
    enter(index, tokens, last); /* without the last pair: it would find itself */
    int32_t place = *head_of(index, tokens, last);
    for (int32_t i = 0; i < LONGEST_CHAIN && place != NOWHERE; i++) {
        int32_t same = match(tokens, place, last);
        if (same > best) best = same, from = place;
        place = index->before[place];
    }
    if (from == NOWHERE) return (od_draft){0, 0};
    /* Where the guess reaches its own start it goes on in a circle. */
    for (int32_t i = 0; i < most; i++) tokens[length + i] = tokens[from + 1 + i];
    return (od_draft){most, (best >= 4) + (best >= 8) + (best >= 16)};
}

void od_draft_forget(od_draft_index *index, int32_t length) {
    if (index->indexed > length) index->indexed = length > 1 ? length : 0;
}

/* ---- whether it pays ---- */

/* Nobody has said how a kind does: these many of its tokens are right. */
static const float EXPECTED[OD_DRAFT_KINDS] = {0.2F, 0.5F, 0.75F, 0.93F};
static const float CONFIDENCE = 4.0F, MEMORY = 48.0F; /* in tokens tried */

static float likely(const od_draft_record *record, int32_t kind) {
    return (record->right[kind] + CONFIDENCE * EXPECTED[kind]) /
           (record->tried[kind] + CONFIDENCE);
}

void od_draft_note(od_draft_record *record, int32_t kind, int32_t checked, int32_t right) {
    record->right[kind] += (float)right;
    record->tried[kind] += (float)(right + (right < checked));
    if (record->tried[kind] < MEMORY) return;
    record->right[kind] *= 0.5F;
    record->tried[kind] *= 0.5F;
}

void od_draft_set_aside(od_draft_record *record, od_draft draft, const int32_t *tokens) {
    if (draft.count == 0 || record->unused_count > 0) return;
    memcpy(record->unused, tokens, (size_t)draft.count * sizeof(int32_t));
    record->unused_count = draft.count;
    record->unused_kind = draft.kind;
    record->unused_right = 0;
}

void od_draft_compare(od_draft_record *record, int32_t token) {
    if (record->unused_count == 0) return;
    bool right = record->unused[record->unused_right] == token;
    od_draft_note(record, record->unused_kind, 1, right); /* at once, so that a copy is soon known */
    if (!right || ++record->unused_right == record->unused_count) record->unused_count = 0;
}

/* Between steps that were measured, in a straight line; beyond them probably little more each. */
static float cost(const od_step_costs *costs, int32_t rows) {
    const float hope = 0.15F;
    int32_t below = rows, above = rows;
    while (below > 0 && costs->ns[below] == 0.0F) below--;
    while (above <= OD_DRAFT_ROWS && costs->ns[above] == 0.0F) above++;
    if (below == rows) return costs->ns[rows];
    float low = costs->ns[below];
    if (above > OD_DRAFT_ROWS) return low * (1.0F + hope * (float)(rows - below));
    float part = (float)(rows - below) / (float)(above - below);
    return low + part * (costs->ns[above] - low);
}

void od_step_measured(od_step_costs *costs, int32_t rows, int64_t ns) {
    if (rows > OD_DRAFT_ROWS) return;
    float *known = &costs->ns[rows], now = (float)ns, hoped = cost(costs, rows);
    /* A step is delayed by others more often than it is too fast, above all the first of its size. */
    if (*known == 0.0F) *known = now > hoped && hoped > 0.0F ? 0.5F * (now + hoped) : now;
    else *known += (now < *known ? 0.5F : 0.0625F) * (now - *known);
}

int32_t od_draft_worth(const od_draft_record *record, od_step_costs *costs, od_draft draft,
                       int32_t rows) {
    const float least_gain = 1.08F;
    const uint32_t again = 32; /* costs change: look again once in so many times */
    if (draft.count == 0 || rows >= OD_DRAFT_ROWS) return 0;
    float chance = likely(record, draft.kind), right = 1.0F, said = (float)rows;
    float best = said / cost(costs, rows) * least_gain, hoped = 0.0F;
    int32_t worth = 0;
    for (int32_t i = 1; i <= draft.count && rows + i <= OD_DRAFT_ROWS; i++) {
        right *= chance;
        said += right;
        hoped = said;
        float rate = said / cost(costs, rows + i);
        if (rate > best) best = rate, worth = i;
    }
    if (worth > 0 || hoped < 1.5F * (float)rows || ++costs->refused % again != 0) return worth;
    return draft.count;
}
