/* The requests of od_sampling: what is refused. */
#ifndef OD_SAMPLING_H
#define OD_SAMPLING_H

#include "message.h"
#include "model.h"

/* *tokenizer describes the tokenizer, where there is one. */
od_status od_sampling_check(const od_sampling *sampling, const od_model *model,
                            od_tokenizer_info *tokenizer, od_error *error);

#endif
