/* What a static executable for Linux and Android has in place of libc: the entry, and the few
 * functions of libc that the runtime calls. Threads need no set-up, for nothing uses their local
 * storage. */
#include "platform.h"
#include "system.h"
#include "system_call_linux.h"

#if defined(__x86_64__)
enum { SYS_EXIT_GROUP = 231, SYS_OPENAT = 257 };

__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    xorl %ebp, %ebp\n"
        "    movq %rsp, %rdi\n"
        "    andq $-16, %rsp\n"
        "    call od_start\n"
        /* int od_clone(long flags, void *stack, uint32_t *number): the child takes its entry and
         * argument from its stack and never returns. */
        ".globl od_clone\n"
        "od_clone:\n"
        "    movq %rdx, %r10\n"
        "    movl $56, %eax\n"
        "    syscall\n"
        "    testq %rax, %rax\n"
        "    jz 1f\n"
        "    ret\n"
        "1:  xorl %ebp, %ebp\n"
        "    popq %rax\n"
        "    popq %rdi\n"
        "    call *%rax\n"
        "    xorl %edi, %edi\n"
        "    movl $60, %eax\n"
        "    syscall\n");
#else
enum { SYS_OPENAT = 56, SYS_EXIT_GROUP = 94 };

__asm__(".text\n"
        ".globl _start\n"
        "_start:\n"
        "    mov x29, xzr\n"
        "    mov x30, xzr\n"
        "    mov x0, sp\n"
        "    bl od_start\n"
        ".globl od_clone\n"
        "od_clone:\n"
        "    mov x4, x2\n"
        "    mov x3, xzr\n"
        "    mov x8, #220\n"
        "    svc #0\n"
        "    cbz x0, 1f\n"
        "    ret\n"
        "1:  mov x29, xzr\n"
        "    ldp x1, x0, [sp], #16\n"
        "    blr x1\n"
        "    mov x0, xzr\n"
        "    mov x8, #93\n"
        "    svc #0\n");
#endif

/* ---- entry ---- */

void od_start(const uint64_t *stack);
unsigned long getauxval(unsigned long type);

static const uint64_t *auxiliary; /* pairs of type and value, the last of type 0 */

/* The stack holds argc, argv, NULL, the environment, NULL, the auxiliary vector. */
__attribute__((noreturn)) void od_start(const uint64_t *stack) {
    int argc = (int)stack[0];
    const uint64_t *next = stack + 1 + argc + 1;
    while (*next != 0) next++;
    auxiliary = next + 1;
    long status = od_run(argc, (char *const *)(uintptr_t)(stack + 1));
    for (;;) system_call(SYS_EXIT_GROUP, status, 0, 0, 0, 0, 0);
}

unsigned long getauxval(unsigned long type) {
    const uint64_t *pair = auxiliary;
    while (pair[0] != 0 && pair[0] != type) pair += 2;
    return pair[0] == type ? pair[1] : 0;
}

/* ---- files ---- */

static long open_at(const char *path, int flags) {
    enum { AT_FDCWD = -100, CLOSE_ON_EXEC = 02000000, MODE = 0644 };
    return system_call(SYS_OPENAT, AT_FDCWD, (long)(uintptr_t)path, flags | CLOSE_ON_EXEC, MODE, 0,
                       0);
}

int od_open_to_read(const char *path) { return (int)open_at(path, 0); }

int od_open_to_write(const char *path) {
    enum { WRITE_ONLY = 01, CREATE = 0100, TRUNCATE = 01000 };
    return (int)open_at(path, WRITE_ONLY | CREATE | TRUNCATE);
}

/* ---- memory ---- */

void *memmove(void *to, const void *from, size_t bytes);

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    uint8_t *target = to;
    const uint8_t *source = from;
    for (size_t i = 0; i < bytes; i++) target[i] = source[i];
    return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *target = to;
    const uint8_t *source = from;
    if ((uintptr_t)to <= (uintptr_t)from) {
        for (size_t i = 0; i < bytes; i++) target[i] = source[i];
    } else {
        for (size_t i = bytes; i > 0; i--) target[i - 1] = source[i - 1];
    }
    return to;
}

void *memset(void *to, int value, size_t bytes) {
    uint8_t *target = to;
    for (size_t i = 0; i < bytes; i++) target[i] = (uint8_t)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes) {
    const uint8_t *left = a, *right = b;
    for (size_t i = 0; i < bytes; i++)
        if (left[i] != right[i]) return left[i] - right[i];
    return 0;
}

/* ---- threads ---- */

int pthread_create(unsigned long *thread, const void *attributes, void *(*entry)(void *),
                   void *argument);
int pthread_join(unsigned long thread, void **result);
int od_clone(long flags, void *stack, _Atomic uint32_t *number);

/* At the upper end of the memory that is the thread's stack. */
typedef struct thread_block {
    uint64_t entry; /* the first two are taken off the stack by od_clone */
    uint64_t argument;
    _Atomic uint32_t number; /* the kernel sets it to 0 when the thread has ended, and wakes */
    uint32_t unused;
    uint64_t unused_too;
} thread_block;

enum { STACK_BYTES = 1 << 20 }; /* paged in when touched */

int pthread_create(unsigned long *thread, const void *attributes, void *(*entry)(void *),
                   void *argument) {
    enum { VM = 0x100, FS = 0x200, FILES = 0x400, SIGHAND = 0x800, THREAD = 0x10000,
           SYSVSEM = 0x40000, PARENT_SETTID = 0x100000, CHILD_CLEARTID = 0x200000 };
    enum { OUT_OF_MEMORY = 12, TRY_AGAIN = 11 };
    const long flags = VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | PARENT_SETTID |
                       CHILD_CLEARTID;
    (void)attributes;
    uint8_t *stack = od_reserve(STACK_BYTES);
    if (stack == NULL) return OUT_OF_MEMORY;
    thread_block *block = (thread_block *)(void *)(stack + STACK_BYTES) - 1;
    block->entry = (uint64_t)(uintptr_t)entry;
    block->argument = (uint64_t)(uintptr_t)argument;
    *thread = (unsigned long)(uintptr_t)block;
    if (od_clone(flags, block, &block->number) > 0) return 0;
    od_release(stack, STACK_BYTES);
    return TRY_AGAIN;
}

int pthread_join(unsigned long thread, void **result) {
#if defined(__x86_64__)
    enum { SYS_FUTEX = 202 };
#else
    enum { SYS_FUTEX = 98 };
#endif
    enum { FUTEX_WAIT_SHARED = 0 }; /* as the kernel wakes */
    thread_block *block = (thread_block *)(uintptr_t)thread;
    uint32_t number;
    (void)result;
    while ((number = atomic_load(&block->number)) != 0)
        system_call(SYS_FUTEX, (long)(uintptr_t)&block->number, FUTEX_WAIT_SHARED, (long)number, 0,
                    0, 0);
    od_release((uint8_t *)(block + 1) - STACK_BYTES, STACK_BYTES);
    return 0;
}
