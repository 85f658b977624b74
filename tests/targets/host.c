/* An app in small: loads both libraries as Android would, and does what apps do.
 *
 *     host LIBONDEVICE LIBMODEL SYMBOL WEIGHTS TOKENIZER SAVED COUNT TOKEN,... [SYSCALL,...]
 *
 * Prints the tokens, a number made of the prompt's logits with the CPU variant, then the tokens of a
 * text and that text again. A conversation is saved as the new file SAVED on the way.
 *
 * With a list of system calls (x86-64), any other ends the process from before the libraries are
 * loaded. Linked against nothing but names, so the C library here is whichever one loads it. */
#include "ondevice.h"
#include "platform.h"

int main(int argc, char **argv);
int __libc_start_main(int (*entry)(int, char **), int argc, char **argv, void (*init)(void),
                      void (*end)(void), void (*loader)(void));
void *dlopen(const char *path, int flags);
void *dlsym(void *library, const char *name);
const char *dlerror(void);
int printf(const char *format, ...);
int open(const char *path, int flags, ...);
int64_t lseek(int fd, int64_t offset, int whence);
int prctl(int option, ...);
int64_t read(int fd, void *to, size_t bytes);
_Noreturn void exit(int status);
void start(long *stack);

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n    xorl %ebp, %ebp\n    movq %rsp, %rdi\n"
        "    andq $-16, %rsp\n    call start\n");
#else
__asm__(".globl _start\n_start:\n    mov x29, xzr\n    mov x30, xzr\n    mov x0, sp\n"
        "    bl start\n");
#endif

void start(long *stack) {
    __libc_start_main(main, (int)stack[0], (char **)(stack + 1), NULL, NULL, NULL);
}

/* Numbers separated by commas; how many. */
static int32_t parse(const char *text, int32_t *values, int32_t most) {
    int32_t n = 0;
    while (*text != '\0' && n < most) {
        values[n] = 0;
        for (; *text >= '0' && *text <= '9'; text++) values[n] = values[n] * 10 + (*text - '0');
        n++;
        if (*text == ',') text++;
    }
    return n;
}

/* ---- the filter ---- */

typedef struct instruction {
    uint16_t code;
    uint8_t if_true, if_false;
    uint32_t value;
} instruction;

typedef struct program {
    uint16_t length;
    const instruction *first;
} program;

static void allow_only(const int32_t *numbers, int32_t count) {
    enum { LOAD = 0x20, EQUAL = 0x15, RETURN = 0x06, NUMBER = 0, ARCHITECTURE = 4 };
    enum { SET_SECCOMP = 22, FILTER = 2, SET_NO_NEW_PRIVILEGES = 38 };
    const uint32_t allow = 0x7fff0000, end_process = 0x80000000, x86_64 = 0xc000003e;
    static instruction code[256];
    uint16_t n = 0;
    code[n++] = (instruction){LOAD, 0, 0, ARCHITECTURE};
    code[n++] = (instruction){EQUAL, 1, 0, x86_64};
    code[n++] = (instruction){RETURN, 0, 0, end_process};
    code[n++] = (instruction){LOAD, 0, 0, NUMBER};
    for (int32_t i = 0; i < count && n < 250; i++) {
        code[n++] = (instruction){EQUAL, 0, 1, (uint32_t)numbers[i]};
        code[n++] = (instruction){RETURN, 0, 0, allow};
    }
    code[n++] = (instruction){RETURN, 0, 0, end_process};
    program filter = {n, code};
    if (prctl(SET_NO_NEW_PRIVILEGES, 1L, 0L, 0L, 0L) != 0 ||
        prctl(SET_SECCOMP, (long)FILTER, &filter) != 0)
        printf("no filter\n");
}

/* ---- the app ---- */

#define FUNCTIONS(X) \
    X(engine_open) X(engine_close) X(engine_describe) X(conversation_open) X(conversation_close) \
    X(fork) X(rewind) X(cancel) X(submit) X(read) X(logits) X(save) X(restore) \
    X(tokenizer_open) X(tokenizer_close) X(encode) X(decode)

#define MEMBER(name) __typeof__(&od_##name) name;
typedef struct functions {
    FUNCTIONS(MEMBER)
} functions;

static functions find(void *library) {
    functions found;
#define FIND(name) found.name = (__typeof__(&od_##name))(uintptr_t)dlsym(library, "od_" #name);
    FUNCTIONS(FIND)
    return found;
}

static od_error error;

static void check(od_status status, const char *what) {
    if (status == OD_OK || status == OD_LENGTH) return;
    printf("%s: %s\n", what, error.text);
    exit(1);
}

/* Generates `most` tokens; prints the first `shown`. */
static void generate(functions od, od_conversation conversation, const int32_t *prompt,
                     int32_t length, int32_t most, int32_t shown) {
    od_sampling sampling = {.max_tokens = most};
    od_status status = od.submit(conversation, prompt, length, &sampling, &error);
    while (status == OD_OK) {
        int32_t tokens[8], count = 0;
        status = od.read(conversation, tokens, 8, -1, &count, &error);
        for (int32_t i = 0; i < count && shown > 0; i++, shown--) printf("%d ", tokens[i]);
    }
    check(status, "generate");
}

/* Every byte of the prompt's logits in one number (FNV-1a). */
static void print_logits(functions od, od_engine engine, const int32_t *prompt, int32_t length) {
    static float logits[1 << 16];
    od_engine_info info;
    od_conversation conversation;
    check(od.engine_describe(engine, &info, &error), "describe");
    check(od.conversation_open(engine, &conversation, &error), "open");
    size_t bytes = sizeof(float) * (size_t)length * (size_t)info.vocab_size;
    if (bytes > sizeof logits) exit(3);
    check(od.logits(conversation, prompt, length, logits, &error), "logits");
    check(od.conversation_close(conversation, &error), "close");
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)logits)[i]) * UINT64_C(0x100000001b3);
    printf("\n%llx %s\n", (unsigned long long)hash, info.variant);
}

/* Growing, forking, going back, cancelling, saving and restoring. */
static void use_conversations(functions od, od_engine engine, const char *saved,
                              const int32_t *prompt, int32_t length) {
    enum { READ_WRITE_CREATE = 0x242, LONG = 150 };
    od_conversation first, second, third;
    od_sampling endless = {.max_tokens = INT32_MAX};
    check(od.conversation_open(engine, &first, &error), "open");
    generate(od, first, prompt, length, LONG, 0);
    check(od.fork(first, &second, &error), "fork");
    generate(od, second, prompt, 2, 3, 0);
    check(od.rewind(second, 40, &error), "rewind");
    check(od.submit(second, prompt, 2, &endless, &error), "submit");
    check(od.cancel(second, &error), "cancel");
    int fd = open(saved, READ_WRITE_CREATE, 0600);
    check(od.save(first, fd, &error), "save");
    check(od.conversation_close(first, &error), "close");
    check(od.restore(engine, fd, 0, lseek(fd, 0, 2), &third, &error), "restore");
    generate(od, third, prompt, 3, 5, 0);
}

static void use_tokenizer(functions od, const char *path) {
    static uint8_t data[1 << 22];
    static const char text[] = "Once upon a time, caf\xc3\xa9";
    char again[64];
    int32_t tokens[64];
    int64_t count = 0, bytes = 0;
    od_tokenizer tokenizer;
    int64_t size = read(open(path, 0), data, sizeof data);
    check(od.tokenizer_open(data, size, &tokenizer, &error), "tokenizer");
    check(od.encode(tokenizer, text, sizeof text - 1, 0, tokens, 64, &count, &error), "encode");
    check(od.decode(tokenizer, tokens, count, 0, again, 64, &bytes, &error), "decode");
    for (int64_t i = 0; i < count; i++) printf("%d ", tokens[i]);
    printf("\n%.*s\n", (int)bytes, again);
    check(od.tokenizer_close(tokenizer, &error), "close tokenizer");
}

int main(int argc, char **argv) {
    enum { NOW = 2 };
    int32_t prompt[256], allowed[256], most = 0;
    if (argc < 9) return 2;
    int32_t length = parse(argv[8], prompt, 256);
    parse(argv[7], &most, 1);
    if (argc > 9) allow_only(allowed, parse(argv[9], allowed, 256));
    void *runtime = dlopen(argv[1], NOW), *library = dlopen(argv[2], NOW);
    if (runtime == NULL || library == NULL) return printf("%s\n", dlerror()), 1;
    const struct od_model *model = dlsym(library, argv[3]);
    functions od = find(runtime);
    int fd = open(argv[4], 0);
    od_options options = {.threads = 3, .conversations = 4};
    for (int32_t round = 0; round < 2; round++) { /* opened again, all is as before */
        od_engine engine;
        od_conversation conversation;
        check(od.engine_open(model, fd, 0, lseek(fd, 0, 2), &options, &engine, &error), "engine");
        check(od.conversation_open(engine, &conversation, &error), "open");
        generate(od, conversation, prompt, length, most, round == 0 ? most : 0);
        if (round == 0) print_logits(od, engine, prompt, length);
        use_conversations(od, engine, argv[6], prompt, length);
        check(od.engine_close(engine, &error), "close engine");
    }
    use_tokenizer(od, argv[5]);
    return 0;
}
