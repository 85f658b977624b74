/* Tokens to text, one at a time: the whole of a text decodes by the same steps, so the pieces of a
 * stream always join to it.
 *
 * Byte-level tokens are bytes of any kind, and what makes no character becomes U+FFFD once per
 * maximal invalid sequence. With byte fallback a token is text or one byte; bytes in a row are text
 * only if all of them are, else each becomes U+FFFD. Such a run is held until it ends. */
#include "tokenizer_decode.h"

static const uint8_t REPLACEMENT[3] = {0xef, 0xbf, 0xbd};

static void put(od_sink *sink, const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++, sink->bytes++)
        if (sink->bytes < sink->capacity) sink->text[sink->bytes] = (char)bytes[i];
}

/* Text at the start of the whole loses the characters that the decoder strips. */
static void put_stripped(const od_tables *t, od_text_stream *stream, od_sink *sink,
                         const uint8_t *bytes, size_t n) {
    while (n > 0 && stream->stripped > 0) {
        if (bytes[0] != t->header->strip) {
            stream->stripped = 0;
            break;
        }
        stream->stripped--;
        bytes++;
        n--;
    }
    put(sink, bytes, n);
}

static void put_replacements(od_text_stream *stream, od_sink *sink, uint32_t n) {
    if (n > 0) stream->stripped = 0;
    for (; n > 0; n--) put(sink, REPLACEMENT, sizeof REPLACEMENT);
}

/* ---- UTF-8, byte by byte ---- */

typedef enum state { WHOLE, PART, BROKEN } state;

/* Whether n bytes are a character, may become one, or cannot. */
static state state_of(const uint8_t *bytes, size_t n) {
    uint8_t first = bytes[0];
    if (first < 0x80) return WHOLE;
    size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length == 0) return BROKEN;
    if (n > 1) { /* no overlong forms, no surrogates, nothing above U+10FFFF */
        uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
        uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
        if (bytes[1] < low || bytes[1] > high) return BROKEN;
    }
    for (size_t i = 2; i < n; i++)
        if ((bytes[i] & 0xc0) != 0x80) return BROKEN;
    return n == length ? WHOLE : PART;
}

int64_t od_find_invalid(const uint8_t *text, int64_t bytes) {
    for (int64_t at = 0; at < bytes;) {
        if (text[at] < 0x80) {
            at++;
            continue;
        }
        size_t n = text[at] < 0xe0 ? 2 : text[at] < 0xf0 ? 3 : 4;
        if ((int64_t)n > bytes - at || state_of(text + at, n) != WHOLE) return at;
        at += (int64_t)n;
    }
    return -1;
}

/* The start of the last character of n bytes, if it is incomplete; else n. */
static size_t incomplete_from(const uint8_t *bytes, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++)
        if (bytes[n - back] >= 0xc0)
            return state_of(bytes + n - back, back) == PART ? n - back : n;
    return n;
}

/* ---- bytes that are held ---- */

/* A byte of a byte-level token: held until it completes or breaks a character. */
static void add_byte(od_text_stream *stream, od_sink *sink, uint8_t byte) {
    stream->bytes[stream->held++] = byte;
    state now = state_of(stream->bytes, stream->held);
    if (now == BROKEN && stream->held > 1) { /* the byte may begin a character of its own */
        put(sink, REPLACEMENT, sizeof REPLACEMENT);
        stream->bytes[0] = byte;
        stream->held = 1;
        now = state_of(stream->bytes, 1);
    }
    if (now == PART) return;
    if (now == WHOLE) put(sink, stream->bytes, stream->held);
    else put(sink, REPLACEMENT, sizeof REPLACEMENT);
    stream->held = 0;
}

/* A byte of a run: nothing is shown until the run ends, is known to be damaged, or is so long that
 * its whole characters are shown. */
static void add_to_run(const od_tables *t, od_text_stream *stream, od_sink *sink, uint8_t byte) {
    if (stream->damaged) {
        put_replacements(stream, sink, 1);
        return;
    }
    size_t from = incomplete_from(stream->bytes, stream->held);
    stream->bytes[stream->held++] = byte;
    if (state_of(stream->bytes + from, stream->held - from) == BROKEN) {
        put_replacements(stream, sink, stream->held);
        stream->held = 0;
        stream->damaged = 1;
    } else if (stream->held == sizeof stream->bytes) {
        from = incomplete_from(stream->bytes, stream->held);
        put_stripped(t, stream, sink, stream->bytes, from);
        for (uint32_t i = 0; from + i < stream->held; i++)
            stream->bytes[i] = stream->bytes[from + i];
        stream->held -= (uint32_t)from;
    }
}

static void end_run(const od_tables *t, od_text_stream *stream, od_sink *sink) {
    if (incomplete_from(stream->bytes, stream->held) != stream->held)
        put_replacements(stream, sink, stream->held);
    else
        put_stripped(t, stream, sink, stream->bytes, stream->held);
    stream->held = 0;
    stream->damaged = 0;
}

/* ---- tokens ---- */

void od_decode_begin(const od_tables *t, uint32_t flags, od_text_stream *stream) {
    memset(stream, 0, sizeof *stream);
    stream->flags = flags;
    stream->stripped = flags & OD_DECODE_CONTINUES ? 0 : t->header->strip_count;
}

void od_decode_token(const od_tables *t, od_text_stream *stream, int32_t token, od_sink *sink) {
    const od_token_record *record = &t->tokens[token];
    if (!(record->flags & OD_TOKEN_EXISTS)) return;
    if ((stream->flags & OD_DECODE_SKIP_SPECIAL) && (record->flags & OD_TOKEN_SPECIAL)) return;
    const uint8_t *piece = t->text + record->piece;
    if (t->header->flags & OD_DECODE_BYTES) {
        for (uint32_t i = 0; i < record->piece_bytes; i++) add_byte(stream, sink, piece[i]);
    } else if (record->flags & OD_TOKEN_BYTE) {
        add_to_run(t, stream, sink, (uint8_t)record->byte);
    } else {
        end_run(t, stream, sink);
        put_stripped(t, stream, sink, piece, record->piece_bytes);
    }
}

void od_decode_end(const od_tables *t, od_text_stream *stream, od_sink *sink) {
    if (!(t->header->flags & OD_DECODE_BYTES)) {
        end_run(t, stream, sink);
        return;
    }
    if (stream->held > 0) put(sink, REPLACEMENT, sizeof REPLACEMENT);
    stream->held = 0;
}

int32_t od_longest_piece(const od_tables *t) {
    uint32_t longest = sizeof ((od_text_stream *)0)->bytes;
    for (int32_t i = 0; i < t->header->vocab_size; i++)
        if (t->tokens[i].piece_bytes > longest) longest = t->tokens[i].piece_bytes;
    /* Every byte may become U+FFFD, those held before as well. */
    return (int32_t)((longest + sizeof ((od_text_stream *)0)->bytes) * sizeof REPLACEMENT);
}
