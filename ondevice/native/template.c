/* Chat templates: fixed text around messages, from a table that was compared with the original. */
#include "template.h"

#include "message.h"

enum { USER = 1 }; /* among the roles */

static const char *const ROLE_NAMES[OD_ROLES + 1] = {"system", "user", "assistant", "tool",
                                                     "the start"};

/* ---- open ---- */

static bool is_text(const od_template *t, uint32_t offset, uint32_t bytes) {
    return offset <= t->header.text_bytes && bytes <= t->header.text_bytes - offset;
}

/* Records lie at any address: they are copied out. */
static od_row row_at(const od_template *t, uint32_t i) {
    od_row row;
    memcpy(&row, t->rows + (size_t)i * sizeof row, sizeof row);
    return row;
}

static od_ending ending_at(const od_template *t, uint32_t i) {
    od_ending ending;
    memcpy(&ending, t->endings + (size_t)i * sizeof ending, sizeof ending);
    return ending;
}

static od_conflict conflict_at(const od_template *t, uint32_t i) {
    od_conflict conflict;
    memcpy(&conflict, t->conflicts + (size_t)i * sizeof conflict, sizeof conflict);
    return conflict;
}

static bool check(const od_template *t) {
    for (uint32_t i = 0; i < t->header.modes * OD_ROWS; i++) {
        od_row row = row_at(t, i);
        if (!is_text(t, row.before, row.before_bytes) || !is_text(t, row.marker, row.marker_bytes))
            return false;
    }
    for (uint32_t i = 0; i < t->header.modes * OD_ENDINGS; i++)
        if (!is_text(t, ending_at(t, i).text, ending_at(t, i).text_bytes)) return false;
    for (uint32_t i = 0; i < t->header.conflicts; i++)
        if (!is_text(t, conflict_at(t, i).text, conflict_at(t, i).text_bytes)) return false;
    return true;
}

static od_status open(const void *data, int64_t bytes, od_template *t, od_error *error) {
    if (data == NULL || bytes < (int64_t)sizeof t->header)
        return od_fail(error, OD_INVALID, "no chat template");
    const uint8_t *at = data;
    memcpy(&t->header, at, sizeof t->header);
    if (memcmp(t->header.magic, OD_TEMPLATE_MAGIC, sizeof t->header.magic) != 0)
        return od_fail(error, OD_MODEL, "not a chat template: it does not start with %s",
                       OD_TEMPLATE_MAGIC);
    if (t->header.version != OD_TEMPLATE_VERSION)
        return od_fail(error, OD_MODEL, "chat template of version %lld, this runtime reads %d",
                       (long long)t->header.version, OD_TEMPLATE_VERSION);
    t->rows = at + sizeof t->header;
    bool sane = t->header.bytes == (uint64_t)bytes && t->header.conflicts <= 1024 &&
                (t->header.modes == 1 || t->header.modes == 2);
    if (sane) {
        uint64_t rows = t->header.modes * OD_ROWS * sizeof(od_row);
        uint64_t endings = t->header.modes * OD_ENDINGS * sizeof(od_ending);
        uint64_t conflicts = t->header.conflicts * sizeof(od_conflict);
        uint64_t all = sizeof t->header + rows + endings + conflicts + t->header.text_bytes;
        sane = all == (uint64_t)bytes;
        t->endings = t->rows + rows;
        t->conflicts = t->endings + endings;
        t->text = t->conflicts + conflicts;
    }
    if (!sane || !check(t)) return od_fail(error, OD_MODEL, "the chat template's file is damaged");
    return OD_OK;
}

/* ---- texts ---- */

static void write(od_prompt *prompt, const uint8_t *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++, prompt->bytes++)
        if (prompt->bytes < prompt->capacity) prompt->text[prompt->bytes] = (char)text[i];
}

/* Text of the template, with dates written out. */
static void write_literal(const od_template *t, od_prompt *prompt, uint32_t offset,
                          uint32_t bytes) {
    const uint8_t *text = t->text + offset;
    uint32_t from = 0;
    bool date = false;
    for (uint32_t i = 0; i <= bytes; i++) {
        if (i < bytes && text[i] != OD_DATE) continue;
        if (date) od_write_date(prompt, text + from, i - from);
        else write(prompt, text + from, i - from);
        date = !date;
        from = i + 1;
    }
}

static int64_t find_last(od_text content, od_text marker) {
    if (marker.bytes == 0) return (int64_t)content.bytes;
    for (int64_t at = (int64_t)content.bytes - (int64_t)marker.bytes; at >= 0; at--)
        if (memcmp(content.data + at, marker.data, marker.bytes) == 0) return at;
    return -1;
}

/* White space as Python's str.strip knows it. */
static bool is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 ||
           code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
           code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

static bool is_stripped(uint32_t code, uint32_t mode) {
    return mode & OD_STRIP_NEWLINES ? code == '\n' : is_space(code);
}

static od_text strip(od_text text, uint32_t mode) {
    uint32_t bytes;
    while ((mode & OD_STRIP_LEFT) && text.bytes > 0) {
        if (!is_stripped(od_character(text.data, text.data + text.bytes, &bytes), mode)) break;
        text.data += bytes;
        text.bytes -= bytes;
    }
    while ((mode & OD_STRIP_RIGHT) && text.bytes > 0) {
        size_t start = text.bytes - 1;
        while (start > 0 && (text.data[start] & 0xc0) == 0x80) start--;
        if (!is_stripped(od_character(text.data + start, text.data + text.bytes, &bytes), mode))
            break;
        text.bytes = start;
    }
    return text;
}

/* ---- messages ---- */

static od_text table_text(const od_template *t, uint32_t offset, uint32_t bytes) {
    return (od_text){t->text + offset, bytes};
}

static od_text content_of(const od_message *message) {
    return (od_text){(const uint8_t *)message->content, (size_t)message->bytes};
}

static bool same(const char *a, const char *b) {
    for (; *a == *b; a++, b++)
        if (*a == '\0') return true;
    return false;
}

static int32_t role_of(const od_message *message) {
    for (int32_t role = 0; role < OD_ROLES; role++)
        if (same(message->role, ROLE_NAMES[role])) return role;
    return -1;
}

static od_status check_messages(const od_message *messages, int32_t n, od_error *error) {
    if (messages == NULL || n <= 0)
        return od_fail(error, OD_INVALID, "a conversation needs a message");
    for (int32_t i = 0; i < n; i++) {
        const od_message *message = &messages[i];
        if (message->role == NULL || message->bytes < 0 || message->bytes > INT32_MAX / 4 ||
            (message->content == NULL && message->bytes > 0))
            return od_fail(error, OD_INVALID, "message %d has no role or no content", i + 1);
        if (role_of(message) < 0)
            return od_fail(error, OD_INVALID, "message %d has the role %s; roles are system, user, "
                           "assistant and tool", i + 1, message->role);
        int64_t invalid = od_find_invalid((const uint8_t *)message->content, message->bytes);
        if (invalid >= 0)
            return od_fail(error, OD_INVALID, "message %d is no UTF-8: its byte %lld is part of no "
                           "character", i + 1, (long long)invalid);
    }
    return OD_OK;
}

/* Whether there is a message of the role that has the text. */
static bool occurs(const od_message *messages, int32_t n, uint32_t role, od_text text) {
    for (int32_t i = 0; i < n; i++)
        if ((uint32_t)role_of(&messages[i]) == role &&
            find_last(content_of(&messages[i]), text) >= 0) return true;
    return false;
}

static od_status check_conflicts(const od_template *t, const od_message *messages, int32_t n,
                                 od_error *error) {
    bool all = true; /* of the group so far */
    for (uint32_t i = 0; i < t->header.conflicts; i++) {
        od_conflict here = conflict_at(t, i);
        all = all && occurs(messages, n, here.role, table_text(t, here.text, here.text_bytes));
        if (i + 1 < t->header.conflicts && conflict_at(t, i + 1).group == here.group) continue;
        if (all)
            return od_fail(error, OD_INVALID, "what is quoted in the messages has another meaning "
                           "to this chat template; it cannot be followed here");
        all = true;
    }
    return OD_OK;
}

static bool is_blank(od_text text) {
    return strip(text, OD_STRIP_LEFT).bytes == 0;
}

/* What the template makes of a content. */
static od_status trim(const od_template *t, const od_row *row, const od_message *message,
                      od_text *content, od_error *error) {
    *content = content_of(message);
    od_text marker = table_text(t, row->marker, row->marker_bytes);
    int64_t at = marker.bytes == 0 ? -1 : find_last(*content, marker);
    if (at >= 0) {
        if (row->flags & OD_REFUSE_MARKER)
            return od_fail(error, OD_INVALID, "the chat template has no place here for a %s "
                           "message with thoughts in it", message->role);
        size_t from = (size_t)at + marker.bytes;
        *content = strip((od_text){content->data + from, content->bytes - from}, row->strip_marked);
    }
    *content = strip(*content, row->strip);
    if ((row->flags & OD_NO_BLANK) && is_blank(*content))
        return od_fail(error, OD_INVALID, "the chat template has no place for an empty %s message",
                       message->role);
    return OD_OK;
}

static od_status write_messages(const od_template *t, uint32_t mode, const od_message *messages,
                                int32_t n, od_prompt *prompt, od_error *error) {
    int32_t previous = OD_NO_ROLE, last_user = n;
    bool user = false;
    while (last_user > 0 && role_of(&messages[last_user - 1]) != USER) last_user--;
    for (int32_t i = 0; i < n; i++) {
        int32_t role = role_of(&messages[i]);
        uint32_t context = (i == n - 1 ? OD_LAST : 0U) | (user ? OD_USER_BEFORE : 0U) |
                           (i + 1 < last_user ? OD_USER_AFTER : 0U);
        uint32_t place = (mode * (OD_ROLES + 1) + (uint32_t)previous) * OD_ROLES + (uint32_t)role;
        od_row row = row_at(t, place * OD_CONTEXTS + context);
        if (!(row.flags & OD_PRESENT))
            return od_fail(error, OD_INVALID, "the chat template has no place for a %s message "
                           "after %s", ROLE_NAMES[role], ROLE_NAMES[previous]);
        od_text content;
        od_status status = trim(t, &row, &messages[i], &content, error);
        if (status != OD_OK) return status;
        write_literal(t, prompt, row.before, row.before_bytes);
        int64_t begin = prompt->bytes;
        write(prompt, content.data, content.bytes);
        if (prompt->contents != NULL) prompt->contents[i] = (od_range){begin, prompt->bytes};
        previous = role;
        user = user || role == USER;
    }
    return OD_OK;
}

od_status od_template_write(const void *data, int64_t bytes, const od_message *messages, int32_t n,
                            uint32_t flags, od_prompt *prompt, od_error *error) {
    od_template t;
    od_status status = open(data, bytes, &t, error);
    if (status == OD_OK) status = check_messages(messages, n, error);
    if (status == OD_OK) status = check_conflicts(&t, messages, n, error);
    if (status != OD_OK) return status;
    uint32_t mode = (flags & OD_CHAT_NO_THINKING) && t.header.modes == 2 ? 1 : 0;
    status = write_messages(&t, mode, messages, n, prompt, error);
    if (status != OD_OK) return status;
    uint32_t role = (uint32_t)role_of(&messages[n - 1]);
    uint32_t user = occurs(messages, n, USER, (od_text){NULL, 0}) ? 1 : 0;
    uint32_t generate = flags & OD_CHAT_GENERATE ? 1 : 0;
    od_ending ending = ending_at(&t, ((mode * OD_ROLES + role) * 2 + user) * 2 + generate);
    if (!ending.present)
        return od_fail(error, OD_INVALID, "the chat template has no end after a %s message",
                       ROLE_NAMES[role]);
    write_literal(&t, prompt, ending.text, ending.text_bytes);
    return OD_OK;
}

/* ---- ondevice.h ---- */

od_status od_chat_render(const void *chat_template, int64_t template_bytes,
                         const od_message *messages, int32_t n, uint32_t flags, int64_t local_time,
                         char *text, int64_t capacity, int64_t *bytes, od_error *error) {
    if (capacity < 0 || bytes == NULL || (text == NULL && capacity > 0))
        return od_fail(error, OD_INVALID, "no room for the prompt");
    od_prompt prompt = {text, capacity, 0, local_time, NULL};
    od_status status =
        od_template_write(chat_template, template_bytes, messages, n, flags, &prompt, error);
    if (status == OD_OK) *bytes = prompt.bytes;
    return status;
}

static od_status encode_prompt(od_tokenizer tokenizer, const od_prompt *prompt, int32_t n,
                               int32_t *tokens, int64_t capacity, int64_t *count,
                               od_error *error) {
    od_text text = {(const uint8_t *)prompt->text, (size_t)prompt->bytes};
    if (prompt->bytes > INT32_MAX / 4)
        return od_fail(error, OD_INVALID, "a prompt of %lld bytes; the most possible is %d",
                       (long long)prompt->bytes, INT32_MAX / 4);
    if (od_find_invalid(text.data, prompt->bytes) >= 0)
        return od_fail(error, OD_MODEL,
                       "the chat template's file is damaged: its text is no UTF-8");
    return od_encode_contents(tokenizer, text, prompt->contents, (size_t)n, 0, tokens, capacity,
                              count, error);
}

od_status od_chat_encode(od_tokenizer tokenizer, const void *chat_template, int64_t template_bytes,
                         const od_message *messages, int32_t n, uint32_t flags, int64_t local_time,
                         int32_t *tokens, int64_t capacity, int64_t *count, od_error *error) {
    if (capacity < 0 || count == NULL || (tokens == NULL && capacity > 0))
        return od_fail(error, OD_INVALID, "no room for the tokens of the prompt");
    od_prompt prompt = {NULL, 0, 0, local_time, NULL}; /* first only measured */
    od_status status =
        od_template_write(chat_template, template_bytes, messages, n, flags, &prompt, error);
    if (status != OD_OK) return status;
    size_t text_bytes = ((size_t)prompt.bytes + 8) / 8 * 8;
    size_t room = text_bytes + (size_t)n * sizeof *prompt.contents;
    uint8_t *memory = od_reserve(room);
    if (memory == NULL)
        return od_fail(error, OD_MEMORY, "no memory for a prompt of %lld bytes",
                       (long long)prompt.bytes);
    prompt = (od_prompt){(char *)memory, prompt.bytes, 0, local_time,
                         (od_range *)(void *)(memory + text_bytes)};
    status = od_template_write(chat_template, template_bytes, messages, n, flags, &prompt, error);
    if (status == OD_OK)
        status = encode_prompt(tokenizer, &prompt, n, tokens, capacity, count, error);
    od_release(memory, room);
    return status;
}
