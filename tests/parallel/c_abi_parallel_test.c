/* foveal_parallel.h from C: one rank that has everything, which is one device to the bit. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "foveal/foveal_parallel.h"

#define CHECK(condition)                                                                                        \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            printf("%s:%d: FAILED: %s; last error: %s\n", __FILE__, __LINE__, #condition, foveal_last_error()); \
            return 1;                                                                                           \
        }                                                                                                       \
    } while (0)

enum { kRows = 40, kHeads = 2, kDim = 8, kElements = kRows * kHeads * kDim };

static foveal_tensor view(float* data) {
    foveal_tensor t = {data, FOVEAL_F32, 4, {1, kRows, kHeads, kDim}, {kElements, kHeads * kDim, kDim, 1}};
    return t;
}

static int one_rank_is_one_device(void) {
    float q[kElements], k[kElements], v[kElements], out[kElements], expected[kElements];
    for (int i = 0; i < kElements; ++i) {
        q[i] = (float)(i * 37 % 23 - 11) / 8;
        k[i] = (float)(i * 29 % 19 - 9) / 8;
        v[i] = (float)(i * 31 % 17 - 8) / 8;
    }
    foveal_forward_args forward;
    foveal_forward_args_init(&forward);
    forward.backend = FOVEAL_BACKEND_CPU;
    forward.q = view(q);
    forward.k = view(k);
    forward.v = view(v);
    forward.out = view(expected);
    forward.window_right = 0;
    CHECK(foveal_forward(&forward, NULL) == FOVEAL_OK);

    const int64_t length = kRows;
    foveal_span spans[2];
    int64_t count = 0;
    CHECK(foveal_place(FOVEAL_ZIGZAG, &length, 1, 1, spans, 2, &count) == FOVEAL_OK && count == 2);
    forward.out = view(out);
    foveal_parallel_args args;
    foveal_parallel_args_init(&args);
    args.ranks = 1;
    args.forward = &forward;
    args.spans_q = spans;
    args.spans_q_count = count;
    foveal_parallel_plan* plan = NULL;
    CHECK(foveal_parallel_plan_create(&args, &plan) == FOVEAL_OK);
    args.workspace_bytes = (foveal_parallel_plan_workspace_bytes(plan) + 255) / 256 * 256;
    void* const memory = calloc(1, args.workspace_bytes + 256);
    CHECK(memory != NULL);
    args.workspace = (char*)memory + (256 - (uintptr_t)memory % 256);
    foveal_communicator* communicator = NULL;
    CHECK(foveal_communicator_create_in_process(1, 10, &communicator) == FOVEAL_OK);
    CHECK(foveal_parallel_forward(plan, communicator, &args, NULL) == FOVEAL_OK);
    CHECK(foveal_communicator_wait(communicator, NULL) == FOVEAL_OK);
    CHECK(memcmp(out, expected, sizeof out) == 0);
    free(memory);
    foveal_communicator_destroy(communicator);
    foveal_parallel_plan_destroy(plan);
    return 0;
}

static int one_rank_has_one_devices_gradients(void) {
    float q[kElements], k[kElements], v[kElements], out[kElements], lse[kHeads * kRows];
    float dq[kElements], dk[kElements], dv[kElements], expected_dq[kElements], expected_dk[kElements],
        expected_dv[kElements];
    for (int i = 0; i < kElements; ++i) {
        q[i] = (float)(i * 37 % 23 - 11) / 8;
        k[i] = (float)(i * 29 % 19 - 9) / 8;
        v[i] = (float)(i * 31 % 17 - 8) / 8;
    }
    foveal_forward_args forward;
    foveal_forward_args_init(&forward);
    forward.backend = FOVEAL_BACKEND_CPU;
    forward.q = view(q);
    forward.k = view(k);
    forward.v = view(v);
    forward.out = view(out);
    forward.lse = (foveal_tensor){lse, FOVEAL_F32, 3, {1, kHeads, kRows}, {kHeads * kRows, kRows, 1}};
    forward.window_right = 0;
    CHECK(foveal_forward(&forward, NULL) == FOVEAL_OK);
    foveal_backward_args gradients;
    foveal_backward_args_init(&gradients);
    gradients.forward = &forward;
    gradients.dout = view(v);
    gradients.dq = view(expected_dq);
    gradients.dk = view(expected_dk);
    gradients.dv = view(expected_dv);
    CHECK(foveal_backward(&gradients, NULL) == FOVEAL_OK);

    const foveal_span span = {0, 0, kRows, 0, 0};
    foveal_parallel_args args;
    foveal_parallel_args_init(&args);
    args.ranks = 1;
    args.forward = &forward;
    args.spans_q = &span;
    args.spans_q_count = 1;
    gradients.dq = view(dq);
    gradients.dk = view(dk);
    gradients.dv = view(dv);
    foveal_parallel_plan* plan = NULL;
    CHECK(foveal_parallel_backward_plan_create(&args, &gradients, &plan) == FOVEAL_OK);
    args.workspace_bytes = (foveal_parallel_plan_workspace_bytes(plan) + 255) / 256 * 256;
    void* const memory = calloc(1, args.workspace_bytes + 256);
    CHECK(memory != NULL);
    args.workspace = (char*)memory + (256 - (uintptr_t)memory % 256);
    foveal_communicator* communicator = NULL;
    CHECK(foveal_communicator_create_in_process(1, 10, &communicator) == FOVEAL_OK);
    CHECK(foveal_parallel_backward(plan, communicator, &args, &gradients, NULL) == FOVEAL_OK);
    for (int i = 0; i < kElements; ++i)
        CHECK(dq[i] == expected_dq[i] && dk[i] == expected_dk[i] && dv[i] == expected_dv[i]);
    free(memory);
    foveal_communicator_destroy(communicator);
    foveal_parallel_plan_destroy(plan);
    return 0;
}

static int null_is_refused(void) {
    CHECK(foveal_parallel_plan_create(NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_forward(NULL, NULL, NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_backward_plan_create(NULL, NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_backward(NULL, NULL, NULL, NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_communicator_wait(NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_decode_workspace_bytes(NULL, 1, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_decode(NULL, NULL, NULL) == FOVEAL_INVALID_ARGUMENT);
    CHECK(foveal_parallel_plan_workspace_bytes(NULL) == 0);
    int64_t count = 7;
    CHECK(foveal_parallel_plan_offsets(NULL, &count) == NULL && count == 0);
    foveal_parallel_plan_destroy(NULL);
    foveal_communicator_destroy(NULL);
    return 0;
}

/* An older or newer caller's structure: its own size, and zeros behind what the library knows. */
static int sizes_are_the_callers(void) {
    struct {
        foveal_parallel_args args;
        int64_t later;
    } newer;
    memset(&newer, 0xAB, sizeof newer);
    foveal_parallel_args_init_sized(&newer.args, sizeof newer);
    CHECK(newer.args.struct_size == sizeof newer && newer.later == 0 && newer.args.method == FOVEAL_PARALLEL_AUTO);
    newer.later = 1;
    CHECK(foveal_parallel_plan_create(&newer.args, NULL) == FOVEAL_UNSUPPORTED);
    CHECK(strstr(foveal_last_error(), "an option of a later version") != NULL);
    return 0;
}

int main(void) {
    return one_rank_is_one_device() | one_rank_has_one_devices_gradients() | null_is_refused() |
           sizes_are_the_callers();
}
