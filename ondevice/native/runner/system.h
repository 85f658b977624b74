/* What the runner asks of the system beyond platform.h, and its entry. */
#ifndef OD_RUNNER_SYSTEM_H
#define OD_RUNNER_SYSTEM_H

#include <stddef.h>
#include <stdint.h>

/* Return the exit status. */
int od_run(int argc, char *const *argv);

int od_open_to_read(const char *path);  /* negative: it cannot be opened */
int od_open_to_write(const char *path); /* created, or emptied */

#endif
