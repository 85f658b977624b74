/* The weights file, mapped read-only. */
#ifndef OD_WEIGHTS_H
#define OD_WEIGHTS_H

#include "message.h"
#include "model.h"

typedef struct od_weights {
    const uint8_t *data; /* behind the header */
    const void *mapping;
    int64_t offset;
    int64_t length;
    uint8_t identity[8]; /* differs where the values differ */
} od_weights;

/* Map and check: bounds, header, and that the file was packed for `model`. */
od_status od_weights_open(od_weights *weights, const od_model *model, int fd, int64_t offset,
                          int64_t length, od_error *error);
void od_weights_close(od_weights *weights);

#endif
