// Generate tokens greedily with llama.cpp on one thread: run_llama MODEL.gguf TOKENS 1,2,3
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)level;
    (void)text;
    (void)data;
}

int main(int count, char **arguments) {
    if (count != 4)
        return 2;
    llama_token tokens[4096];
    int length = 0;
    for (char *at = strtok(arguments[3], ","); at && length < 4096; at = strtok(NULL, ","))
        tokens[length++] = atoi(at);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model =
        llama_model_load_from_file(arguments[1], llama_model_default_params());
    struct llama_context_params settings = llama_context_default_params();
    settings.n_ctx = 512;
    settings.n_threads = settings.n_threads_batch = 1;
    struct llama_context *context = model ? llama_init_from_model(model, settings) : NULL;
    if (!context)
        return 1;
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int left = atoi(arguments[2]); left > 0; left--) {
        if (llama_decode(context, llama_batch_get_one(tokens, length)))
            return 1;
        const float *logits = llama_get_logits_ith(context, -1);
        int best = 0;
        for (int i = 1; i < vocab; i++)
            best = logits[i] > logits[best] ? i : best;
        printf("%d\n", best);
        tokens[0] = best;
        length = 1;
    }
    return 0;
}
