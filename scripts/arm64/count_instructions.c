// A plugin of QEMU's user emulation: counts the instructions that a program executes, and prints
// the blocks in which it executes most, by their distance from the start of the program's code.
//   qemu-aarch64 -plugin libcount.so,out=FILE PROGRAM
// The declarations are those of QEMU's documented plugin API; its header is not packaged everywhere.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
typedef uint64_t qemu_plugin_id_t;
void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t id, void (*done)(qemu_plugin_id_t id, struct qemu_plugin_tb *block));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *block, void (*done)(unsigned vcpu, void *data), int flags, void *data);
void qemu_plugin_register_atexit_cb(
    qemu_plugin_id_t id, void (*done)(qemu_plugin_id_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_start_code(void);

#define EXPORT __attribute__((visibility("default")))
enum { MAX_BLOCKS = 1 << 18, SHOWN = 2000 };

EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

typedef struct {
    uint64_t address, instructions, executions;
} Block;

static Block blocks[MAX_BLOCKS];
static unsigned block_count; // translation holds a lock of QEMU's
static char out[4096];

static void executed(unsigned vcpu, void *data) {
    (void)vcpu;
    Block *block = data;
    __atomic_fetch_add(&block->executions, 1, __ATOMIC_RELAXED);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *translation) {
    (void)id;
    unsigned n = __atomic_fetch_add(&block_count, 1, __ATOMIC_RELAXED);
    if (n >= MAX_BLOCKS) {
        fputs("too many blocks to count\n", stderr);
        exit(1);
    }
    blocks[n].address = qemu_plugin_tb_vaddr(translation);
    blocks[n].instructions = qemu_plugin_tb_n_insns(translation);
    qemu_plugin_register_vcpu_tb_exec_cb(translation, executed, 0, &blocks[n]);
}

static int by_work(const void *a, const void *b) {
    const Block *x = a, *y = b;
    uint64_t left = x->instructions * x->executions, right = y->instructions * y->executions;
    return (left < right) - (left > right);
}

static void ended(qemu_plugin_id_t id, void *data) {
    (void)id;
    (void)data;
    uint64_t total = 0, start = qemu_plugin_start_code();
    for (unsigned i = 0; i < block_count; i++)
        total += blocks[i].instructions * blocks[i].executions;
    FILE *file = fopen(out, "w");
    if (!file)
        return;
    fprintf(file, "%llu\n", (unsigned long long)total);
    qsort(blocks, block_count, sizeof *blocks, by_work);
    for (unsigned i = 0; i < SHOWN && i < block_count; i++)
        fprintf(file, "%lld %llu %llu\n", (long long)(blocks[i].address - start),
                (unsigned long long)blocks[i].instructions,
                (unsigned long long)blocks[i].executions);
    fclose(file);
}

EXPORT int qemu_plugin_install(
    qemu_plugin_id_t id, const void *info, int count, char **arguments) {
    (void)info;
    if (count != 1 || strncmp(arguments[0], "out=", 4) || strlen(arguments[0]) > sizeof out)
        return -1;
    strcpy(out, arguments[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
