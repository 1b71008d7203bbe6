/* What the tests of the C ABI share: memory for one small problem, and checks of status, message and untouched outputs.
 * Plain C99, and nothing but foveal.h. */
#ifndef FOVEAL_TESTS_CONTRACT_C_ABI_FIXTURE_H
#define FOVEAL_TESTS_CONTRACT_C_ABI_FIXTURE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "foveal/foveal.h"

enum { kBatch = 2, kRowsQ = 3, kRowsK = 5, kHeadsQ = 4, kHeadsK = 2, kDim = 8 };
enum { kElementsQ = kBatch * kRowsQ * kHeadsQ * kDim, kElementsK = kBatch * kRowsK * kHeadsK * kDim };
enum { kElementsLse = kBatch * kHeadsQ * kRowsQ };

static float q[kElementsQ + 8], k[kElementsK + 8], v[kElementsK + 8], out[kElementsQ + 8], lse[kElementsLse + 8];

static int checks = 0;
static int failures = 0;

static void check(int ok, const char* what, const char* detail) {
    ++checks;
    if (ok) return;
    ++failures;
    printf("FAILED: %s (%s)\n", what, detail);
}

static foveal_tensor tensor_of(void* data, foveal_dtype dtype, int32_t rank, const int64_t* shape) {
    foveal_tensor t;
    int64_t stride = 1;
    int32_t i;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.dtype = dtype;
    t.rank = rank;
    for (i = rank - 1; i >= 0; --i) {
        t.shape[i] = shape[i];
        t.stride[i] = stride;
        stride *= shape[i];
    }
    return t;
}

static const unsigned char kUntouched = 0xA5;

static void poison(void) {
    memset(out, kUntouched, sizeof out);
    memset(lse, kUntouched, sizeof lse);
}

static int untouched(void) {
    size_t i;
    for (i = 0; i < sizeof out; ++i)
        if (((const unsigned char*)out)[i] != kUntouched) return 0;
    for (i = 0; i < sizeof lse; ++i)
        if (((const unsigned char*)lse)[i] != kUntouched) return 0;
    return 1;
}

static void expect_status(const char* what, foveal_status got, foveal_status expected) {
    check(got == expected, what, foveal_status_name(got));
}

/* The last message must hold each of the ';'-separated words. */
static void expect_message(const char* what, const char* words) {
    char list[256];
    char* word;
    strncpy(list, words, sizeof list - 1);
    list[sizeof list - 1] = '\0';
    for (word = strtok(list, ";"); word != NULL; word = strtok(NULL, ";"))
        if (strstr(foveal_last_error(), word) == NULL) {
            printf("message of '%s' lacks '%s': ", what, word);
            check(0, "the message names argument and value", foveal_last_error());
        }
}

/* The exit status of the program. */
static int report(void) {
    printf("%d checks, %d failed\n", checks, failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
