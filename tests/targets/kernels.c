/* Runs one compiled kernel on files, in place: kernels INDEX BEGIN END SCRATCH_BYTES SCALARS FILE...
 * Every buffer lies against a page that may not be touched. */
#include "model.h"
#include "platform.h"
#include "system.h"

enum { MOST = 32 };

extern const od_kernel od_test_kernels[];

typedef struct buffer {
    const char *path;
    void *data;
    int64_t bytes;
} buffer;

static bool load(buffer *to, const char *path) {
    int fd = od_open_to_read(path);
    if (fd < 0) return false;
    to->path = path;
    to->bytes = od_file_bytes(fd);
    to->data = od_reserve((size_t)to->bytes);
    if (to->data == NULL) return false;
    const void *file = od_map_file(fd, 0, to->bytes);
    if (file == NULL) return false;
    memcpy(to->data, file, (size_t)to->bytes);
    od_unmap_file(file, 0, to->bytes);
    return true;
}

static bool save(const buffer *from) {
    int fd = od_open_to_write(from->path);
    return fd >= 0 && od_write(fd, from->data, (size_t)from->bytes);
}

static int32_t number(const char *text) {
    int32_t value = 0;
    for (; *text != '\0'; text++) value = value * 10 + (*text - '0');
    return value;
}

int od_run(int argc, char *const *argv) {
    if (argc < 6 || argc > 6 + MOST) return 2;
    buffer scalars, buffers[MOST];
    void *pointers[MOST];
    int count = argc - 6;
    if (!load(&scalars, argv[5])) return 3;
    for (int i = 0; i < count; i++) {
        if (!load(&buffers[i], argv[6 + i])) return 3;
        pointers[i] = buffers[i].data;
    }
    void *scratch = od_reserve((size_t)number(argv[4]) + 64);
    od_test_kernels[number(argv[1])](pointers, scalars.data, number(argv[2]), number(argv[3]),
                                     scratch);
    for (int i = 0; i < count; i++)
        if (!save(&buffers[i])) return 4;
    return 0;
}
