// The tensor arguments that a forward call reads.
#pragma once

#include "foveal/foveal.h"

namespace foveal {

struct ForwardInput {
    const char* name;
    foveal_tensor foveal_forward_args::*tensor;
};

inline constexpr ForwardInput kForwardInputs[] = {{"q", &foveal_forward_args::q},
                                                  {"k", &foveal_forward_args::k},
                                                  {"v", &foveal_forward_args::v},
                                                  {"cu_seqlens_q", &foveal_forward_args::cu_seqlens_q},
                                                  {"cu_seqlens_k", &foveal_forward_args::cu_seqlens_k},
                                                  {"seqused_q", &foveal_forward_args::seqused_q},
                                                  {"seqused_k", &foveal_forward_args::seqused_k},
                                                  {"alibi_slopes", &foveal_forward_args::alibi_slopes},
                                                  {"sinks", &foveal_forward_args::sinks},
                                                  {"bias", &foveal_forward_args::bias},
                                                  {"mask", &foveal_forward_args::mask},
                                                  {"block_table", &foveal_forward_args::block_table},
                                                  {"page_indptr", &foveal_forward_args::page_indptr},
                                                  {"page_indices", &foveal_forward_args::page_indices},
                                                  {"query_offset", &foveal_forward_args::query_offset},
                                                  {"tree_mask", &foveal_forward_args::tree_mask},
                                                  {"q_descale", &foveal_forward_args::q_descale},
                                                  {"k_descale", &foveal_forward_args::k_descale},
                                                  {"v_descale", &foveal_forward_args::v_descale}};

}  // namespace foveal
