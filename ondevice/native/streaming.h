/* Weights that memory has no room for. The system drops what was used longest ago, and of what is
 * read in the same order again and again that is always the next: of weights that nearly fit, all
 * would be read anew for each token. So the last part of them is streamed: a thread reads it ahead
 * of the step and gives it back behind it, and the system leaves the rest alone.
 *
 * All of it is advice to the system; the weights are mapped and readable at any time. */
#ifndef OD_STREAMING_H
#define OD_STREAMING_H

#include "platform.h"

typedef struct od_streaming {
    const uint8_t *weights;
    int64_t bytes;
    _Atomic int64_t place; /* where a step reads; set by who runs it */
    _Atomic int64_t first; /* what lies from here on is streamed */
    od_event steps;        /* advanced when one begins, and to end the thread */
    _Atomic bool running;  /* a step is */
    _Atomic bool closing;
    bool started;
    od_thread thread;
    /* Of the engine's thread: */
    int64_t read_bytes;  /* by this process, when the last step ended */
    int64_t most;        /* `first` is less: with so much kept, memory was short */
    int32_t short_steps; /* steps in a row that read what should have been there */
    int32_t calm_steps;  /* that did not */
} od_streaming;

void od_streaming_open(od_streaming *streaming, const uint8_t *weights, int64_t bytes);
void od_streaming_close(od_streaming *streaming);

/* Around each step. At the end it shows whether the weights fit. */
void od_streaming_begin(od_streaming *streaming);
void od_streaming_end(od_streaming *streaming);

#endif
