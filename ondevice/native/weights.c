#include "weights.h"

#include "platform.h"

static od_status check_header(const od_weights_header *header, const od_model *model,
                              int64_t length, od_error *error) {
    if (memcmp(header->magic, OD_WEIGHTS_MAGIC, sizeof header->magic) != 0)
        return od_fail(error, OD_WEIGHTS, "not a weights file: it does not start with %s",
                       OD_WEIGHTS_MAGIC);
    if (header->version != OD_WEIGHTS_VERSION || header->data_start != sizeof *header)
        return od_fail(error, OD_WEIGHTS, "weights file of version %lld, this runtime reads %d",
                       (long long)header->version, OD_WEIGHTS_VERSION);
    if (memcmp(header->abi_hash, model->abi_hash, sizeof header->abi_hash) != 0)
        return od_fail(error, OD_WEIGHTS, "the weights file belongs to another build of %s: "
                       "its abi_hash is not the library's", model->name);
    if (header->data_bytes != (uint64_t)model->weights_bytes ||
        header->data_bytes + sizeof *header > (uint64_t)length)
        return od_fail(error, OD_WEIGHTS, "weights of %lld bytes in a file of %lld, %s needs %lld",
                       (long long)header->data_bytes, (long long)length, model->name,
                       (long long)model->weights_bytes);
    return OD_OK;
}

od_status od_weights_open(od_weights *weights, const od_model *model, int fd, int64_t offset,
                          int64_t length, od_error *error) {
    int64_t file_bytes = od_file_bytes(fd);
    if (file_bytes < 0)
        return od_fail(error, OD_WEIGHTS, "file descriptor %d cannot be read (system error %lld)",
                       fd, -(long long)file_bytes);
    if (offset < 0 || offset % 4 != 0 || length < (int64_t)sizeof(od_weights_header) ||
        offset > file_bytes || length > file_bytes - offset)
        return od_fail(error, OD_WEIGHTS, "weights of %lld bytes at offset %lld do not lie at a "
                       "multiple of 4 inside a file of %lld bytes", (long long)length,
                       (long long)offset, (long long)file_bytes);
    const void *mapping = od_map_file(fd, offset, length);
    if (mapping == NULL)
        return od_fail(error, OD_MEMORY, "cannot map %lld bytes of weights", (long long)length);
    od_weights_header header; /* copied: the file may lie at any multiple of 4 */
    memcpy(&header, mapping, sizeof header);
    *weights = (od_weights){(const uint8_t *)mapping + sizeof header, mapping, offset, length, {0}};
    memcpy(weights->identity, header.identity, sizeof header.identity);
    od_status status = check_header(&header, model, length, error);
    if (status != OD_OK) od_weights_close(weights);
    return status;
}

void od_weights_close(od_weights *weights) {
    od_unmap_file(weights->mapping, weights->offset, weights->length);
    weights->mapping = NULL;
}
