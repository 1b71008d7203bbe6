// Where keys and values lie: dense, packed one sequence behind the other, or in pages (contract 1.1 and 1.11).
#pragma once

#include <cstdint>

#include "foveal/foveal.h"

namespace foveal {

enum class KeyForm { dense, varlen, paged };

// Which of them the arguments are. Throws Error(INVALID_ARGUMENT) where they are none or two. Ranks are known ones.
KeyForm key_form_of(const foveal_forward_args& args);

// What messages call it: "keys in pages (block_table is present)".
const char* layout_of_keys(const foveal_forward_args& args, KeyForm form);

// The two forms of a table of pages, of any operation.
struct TableArguments {
    const foveal_tensor& block_table;
    const foveal_tensor& page_indptr;
    const foveal_tensor& page_indices;
};

// Is there a table? Throws Error(INVALID_ARGUMENT) where there are two, or half of a list.
bool has_table(const TableArguments& args);
// The one that there is.
void check_table(const TableArguments& args, int64_t batch);

// The table of pages, and the pages' sizes. k's rank and strides are checked before.
void check_pages(const foveal_forward_args& args, int64_t batch);

// Keys that a sequence in pages may have at most: what the table has entries for, and bias and mask values.
int64_t most_keys_in_pages(const foveal_forward_args& args);

}  // namespace foveal
