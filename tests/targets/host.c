/* An app in small: loads both libraries as Android would and generates.
 *
 *     host LIBONDEVICE LIBMODEL SYMBOL WEIGHTS COUNT TOKEN,... [SYSCALL,...]
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

typedef struct functions {
    __typeof__(&od_engine_open) engine_open;
    __typeof__(&od_engine_close) engine_close;
    __typeof__(&od_conversation_open) conversation_open;
    __typeof__(&od_submit) submit;
    __typeof__(&od_read) read;
} functions;

static functions find(void *library) {
    return (functions){
        (__typeof__(&od_engine_open))(uintptr_t)dlsym(library, "od_engine_open"),
        (__typeof__(&od_engine_close))(uintptr_t)dlsym(library, "od_engine_close"),
        (__typeof__(&od_conversation_open))(uintptr_t)dlsym(library, "od_conversation_open"),
        (__typeof__(&od_submit))(uintptr_t)dlsym(library, "od_submit"),
        (__typeof__(&od_read))(uintptr_t)dlsym(library, "od_read"),
    };
}

static od_status generate(functions od, const struct od_model *model, const char *path,
                          const int32_t *prompt, int32_t length, int32_t most, od_error *error) {
    int fd = open(path, 0);
    od_options options = {.threads = 2, .conversations = 1};
    od_sampling sampling = {.max_tokens = most};
    od_engine engine;
    od_conversation conversation;
    od_status status =
        od.engine_open(model, fd, 0, lseek(fd, 0, 2), &options, &engine, error);
    if (status == OD_OK) status = od.conversation_open(engine, &conversation, error);
    if (status == OD_OK) status = od.submit(conversation, prompt, length, &sampling, error);
    while (status == OD_OK) {
        int32_t tokens[8], count = 0;
        status = od.read(conversation, tokens, 8, -1, &count, error);
        for (int32_t i = 0; i < count; i++) printf("%d ", tokens[i]);
    }
    printf("\n");
    return status > 0 ? od.engine_close(engine, error) : status;
}

int main(int argc, char **argv) {
    enum { NOW = 2 };
    int32_t prompt[256], allowed[256], most = 0;
    od_error error = {{0}};
    if (argc < 7) return 2;
    int32_t length = parse(argv[6], prompt, 256);
    parse(argv[5], &most, 1);
    if (argc > 7) allow_only(allowed, parse(argv[7], allowed, 256));
    void *runtime = dlopen(argv[1], NOW), *library = dlopen(argv[2], NOW);
    if (runtime == NULL || library == NULL) return printf("%s\n", dlerror()), 1;
    const struct od_model *model = dlsym(library, argv[3]);
    if (generate(find(runtime), model, argv[4], prompt, length, most, &error) == OD_OK) return 0;
    return printf("%s\n", error.text), 1;
}
