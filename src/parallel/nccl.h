/* What foveal calls of NCCL's public C API (libnccl.so.2, 2.14 or newer), declared here, so that a build needs no NCCL.
 * https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html */
#ifndef FOVEAL_PARALLEL_NCCL_H
#define FOVEAL_PARALLEL_NCCL_H

#include <stddef.h>

typedef struct foveal_nccl_comm* foveal_nccl_comm_t; /* ncclComm_t */
typedef int foveal_nccl_result;                      /* ncclResult_t */
enum { FOVEAL_NCCL_SUCCESS = 0, FOVEAL_NCCL_IN_PROGRESS = 7 };
enum { FOVEAL_NCCL_INT8 = 0 }; /* ncclDataType_t: bytes are sent as they are */

/* Streams are cudaStream_t. */
typedef foveal_nccl_result (*foveal_nccl_group_function)(void);
typedef foveal_nccl_result (*foveal_nccl_send_function)(const void* data, size_t count, int type, int peer,
                                                        foveal_nccl_comm_t comm, void* stream);
typedef foveal_nccl_result (*foveal_nccl_recv_function)(void* data, size_t count, int type, int peer,
                                                        foveal_nccl_comm_t comm, void* stream);
typedef foveal_nccl_result (*foveal_nccl_comm_int_function)(foveal_nccl_comm_t comm, int* value);
typedef foveal_nccl_result (*foveal_nccl_abort_function)(foveal_nccl_comm_t comm);
typedef const char* (*foveal_nccl_error_string_function)(foveal_nccl_result result);
typedef const char* (*foveal_nccl_last_error_function)(foveal_nccl_comm_t comm);

#endif
