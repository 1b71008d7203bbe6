// How fake_nccl.cpp is told what to do.
#pragma once

#include <atomic>

#include "parallel/nccl.h"

struct FakeNcclBehaviour {
    int looks_in_progress = 0;  // how often the state is "in progress" after a group's end
    int async_error = 0;        // what the state is then
    int send_fails = 0;
};

extern "C" {
using fake_nccl_init_all_function = void (*)(foveal_nccl_comm_t* comms, int ranks, const FakeNcclBehaviour* behaviour);
using fake_nccl_is_aborted_function = int (*)(foveal_nccl_comm_t comm);
using fake_nccl_free_function = void (*)(foveal_nccl_comm_t comm);
using fake_nccl_open_groups_function = int (*)();
}
