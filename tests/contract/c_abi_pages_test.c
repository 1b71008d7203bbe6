/* Pages, offsets, trees and workspaces through the C ABI, in plain C99: what must be refused, each by an error of its
 * own that names the argument and the value, without a byte written. */
#include <string.h>

#include "tests/contract/c_abi_fixture.h"

enum { kPages = 5, kPageSize = 2, kMaxPages = 3 };

/* Longer than they need be: lse is laid over them. */
static int32_t table[kElementsLse] = {4, 0, 2, 1, 3, -1};
static int32_t indptr[kElementsLse] = {0, 3, 5};
static int32_t indices[kBatch * kMaxPages] = {4, 0, 2, 1, 3, -1};
static int32_t used_k[kBatch] = {5, 3};
static int32_t offsets[kBatch] = {2, -1};
static int32_t cu_q[kBatch + 1] = {0, kRowsQ, 2 * kRowsQ};
static int32_t cu_k[kBatch + 1] = {0, kRowsK, 2 * kRowsK};
static uint32_t tree[kElementsLse] = {1, 3, 7, 1, 3, 5};
static union {
    double alignment[2];
    char bytes[64];
} memory;

static foveal_tensor vector_of(int32_t* data, int64_t entries) { return tensor_of(data, FOVEAL_I32, 1, &entries); }

static foveal_forward_args paged(void) {
    const int64_t shape_q[] = {kBatch, kRowsQ, kHeadsQ, kDim};
    const int64_t shape_k[] = {kPages, kPageSize, kHeadsK, kDim};
    const int64_t shape_lse[] = {kBatch, kHeadsQ, kRowsQ};
    const int64_t shape_table[] = {kBatch, kMaxPages};
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.q = tensor_of(q, FOVEAL_F32, 4, shape_q);
    args.k = tensor_of(k, FOVEAL_F32, 4, shape_k);
    args.v = tensor_of(v, FOVEAL_F32, 4, shape_k);
    args.out = tensor_of(out, FOVEAL_F32, 4, shape_q);
    args.lse = tensor_of(lse, FOVEAL_F32, 3, shape_lse);
    args.block_table = tensor_of(table, FOVEAL_I32, 2, shape_table);
    args.seqused_k = vector_of(used_k, kBatch);
    return args;
}

static foveal_forward_args listed(void) {
    foveal_forward_args args = paged();
    args.block_table.rank = 0;
    args.page_indptr = vector_of(indptr, kBatch + 1);
    args.page_indices = vector_of(indices, kBatch * kMaxPages);
    return args;
}

static foveal_forward_args with_tree(void) {
    const int64_t shape[] = {kBatch, kRowsQ, 1};
    foveal_forward_args args = paged();
    args.tree_mask = tensor_of(tree, FOVEAL_U32, 3, shape);
    return args;
}

static void expect_works(const char* what, const foveal_forward_args* args) {
    poison();
    check(foveal_forward(args, NULL) == FOVEAL_OK, what, foveal_last_error());
    check(foveal_supports(args) == FOVEAL_OK, what, foveal_last_error());
    check(!untouched(), what, "nothing was written");
}

/* foveal_supports looks at no pointer: `shapes` says whether it refuses too. */
static void expect_refused(const char* what, const foveal_forward_args* args, int shapes, const char* words) {
    poison();
    expect_status(what, foveal_forward(args, NULL), FOVEAL_INVALID_ARGUMENT);
    expect_message(what, words);
    check(untouched(), what, "something was written");
    expect_status(what, foveal_supports(args), shapes ? FOVEAL_INVALID_ARGUMENT : FOVEAL_OK);
}

static void test_good_calls(void) {
    foveal_forward_args args = paged();
    expect_works("pages", &args);
    args.block_table.dtype = FOVEAL_U32;
    expect_works("u32 pages", &args);
    args = listed();
    expect_works("listed pages", &args);
    args.query_offset = vector_of(offsets, kBatch);
    expect_works("offsets", &args);
    args = with_tree();
    args.query_offset = vector_of(offsets, kBatch);
    args.query_offset.stride[0] = 0;
    expect_works("a tree, and one offset for all", &args);
    args = paged(), args.workspace = memory.bytes, args.workspace_bytes = sizeof memory.bytes;
    expect_works("a workspace that is not needed", &args);
    args = paged(), args.k.shape[0] = args.v.shape[0] = 0, args.k.data = args.v.data = NULL;
    used_k[0] = used_k[1] = 0;
    expect_works("no pages, and no memory for them", &args);
    used_k[0] = 5, used_k[1] = 3;
}

static void test_forms(void) {
    foveal_forward_args args;
    args = listed(), args.block_table = paged().block_table;
    expect_refused("table and list", &args, 1, "block_table;page_indices");
    args = listed(), args.page_indices.rank = 0;
    expect_refused("page_indptr alone", &args, 1, "page_indptr is present;page_indices is absent");
    args = listed(), args.page_indptr.rank = 0;
    expect_refused("page_indices alone", &args, 1, "page_indices is present;page_indptr is absent");
    args = paged(), args.seqused_k.rank = 0;
    expect_refused("pages without lengths", &args, 1, "seqused_k is absent;block_table");
    args = listed(), args.seqused_k.rank = 0;
    expect_refused("listed pages without lengths", &args, 1, "seqused_k is absent;page_indices");
    args = paged(), args.cu_seqlens_k = vector_of(cu_k, kBatch + 1);
    expect_refused("pages and packed keys", &args, 1, "cu_seqlens_k;block_table");
    args = paged(), args.k.rank = 3;
    expect_refused("pages of rank 3", &args, 1, "k.rank is 3;pages;4");
    args = paged(), args.v.shape[0] = kPages - 1;
    expect_refused("fewer pages of v", &args, 1, "v.shape[0] is 4;5");
    args = paged(), args.v.shape[1] = 1;
    expect_refused("smaller pages of v", &args, 1, "v.shape[1] is 1;2");
    args = paged(), args.k.shape[1] = args.v.shape[1] = 0;
    expect_refused("pages without rows", &args, 1, "k.shape[1] is 0;page");
    args = paged(), args.k.shape[1] = args.v.shape[1] = (int64_t)1 << 30;
    expect_refused("pages of 2^30 rows", &args, 1, "k.shape[1] is 1073741824");
    args = paged(), args.k.shape[0] = args.v.shape[0] = (int64_t)1 << 31;
    expect_refused("2^31 pages", &args, 1, "k.shape[0] is 2147483648");
    args = paged(), args.block_table.rank = 0, args.seqused_k.rank = 0;
    args.cu_seqlens_q = vector_of(cu_q, kBatch + 1), args.q.rank = args.out.rank = 3, args.lse.rank = 0;
    expect_refused("a varlen q beside keys without lengths", &args, 1, "cu_seqlens_k is absent;seqused_k");
}

static void test_tables(void) {
    foveal_forward_args args;
    args = paged(), args.block_table.rank = 1;
    expect_refused("table of rank 1", &args, 1, "block_table.rank is 1;2");
    args = paged(), args.block_table.dtype = FOVEAL_I64;
    expect_refused("i64 table", &args, 1, "block_table.dtype is i64;u32");
    args = paged(), args.block_table.shape[0] = kBatch + 1;
    expect_refused("table of another batch", &args, 1, "block_table.shape[0] is 3;2");
    args = paged(), args.block_table.stride[1] = 2;
    expect_refused("strided table", &args, 1, "block_table.stride[1] is 2");
    args = paged(), args.block_table.shape[1] = -1;
    expect_refused("negative table", &args, 1, "block_table.shape[1] is -1");
    args = paged(), args.block_table.data = NULL;
    expect_refused("NULL table", &args, 0, "block_table.data is NULL");
    args = listed(), args.page_indptr.shape[0] = kBatch;
    expect_refused("too few firsts", &args, 1, "page_indptr.shape[0] is 2;3");
    args = listed(), args.page_indptr.dtype = FOVEAL_U32;
    expect_refused("u32 firsts", &args, 1, "page_indptr.dtype is u32;i32");
    args = listed(), args.page_indices.dtype = FOVEAL_F32;
    expect_refused("f32 pages", &args, 1, "page_indices.dtype is f32;u32");
    args = listed(), args.page_indices.rank = 2;
    expect_refused("pages of rank 2", &args, 1, "page_indices.rank is 2;1");
    args = listed(), args.page_indices.shape[0] = (int64_t)1 << 31;
    expect_refused("2^31 listed pages", &args, 1, "page_indices.shape[0] is 2147483648");
    args = listed(), args.page_indices.data = NULL;
    expect_refused("NULL list", &args, 0, "page_indices.data is NULL");
    args = paged(), args.seqused_k.shape[0] = 1;
    expect_refused("one length", &args, 1, "seqused_k.shape[0] is 1;2");
    table[0] = kPages;
    args = paged();
    expect_refused("a page behind the last", &args, 0, "block_table[0, 0] is 5;5 pages");
    table[0] = 4;
}

static void test_options(void) {
    foveal_forward_args args;
    args = paged(), args.query_offset = vector_of(offsets, kBatch), args.alignment = FOVEAL_TOP_LEFT;
    expect_refused("offset and alignment", &args, 1, "alignment is 1;query_offset");
    args = paged(), args.query_offset = vector_of(offsets, kBatch + 1);
    expect_refused("three offsets", &args, 1, "query_offset.shape[0] is 3;2");
    args = paged(), args.query_offset = vector_of(offsets, kBatch), args.query_offset.dtype = FOVEAL_U32;
    expect_refused("u32 offsets", &args, 1, "query_offset.dtype is u32;i32");
    args = with_tree(), args.tree_mask.dtype = FOVEAL_I32;
    expect_refused("i32 tree", &args, 1, "tree_mask.dtype is i32;u32");
    args = with_tree(), args.tree_mask.rank = 2;
    expect_refused("tree of rank 2", &args, 1, "tree_mask.rank is 2;3");
    args = with_tree(), args.tree_mask.shape[0] = 1;
    expect_refused("tree of one sequence", &args, 1, "tree_mask.shape[0] is 1;2");
    args = with_tree(), args.tree_mask.shape[1] = kRowsQ + 1;
    expect_refused("tree of more rows", &args, 1, "tree_mask.shape[1] is 4;3");
    args = with_tree(), args.tree_mask.data = NULL;
    expect_refused("NULL tree", &args, 0, "tree_mask.data is NULL");
}

static void test_workspace(void) {
    foveal_forward_args args;
    args = paged(), args.workspace_bytes = 64;
    expect_refused("bytes of no workspace", &args, 0, "workspace is NULL;workspace_bytes is 64");
    args = paged(), args.workspace = memory.bytes;
    expect_refused("workspace of no bytes", &args, 0, "workspace is present;workspace_bytes is 0");
    args = paged(), args.workspace = memory.bytes + 8, args.workspace_bytes = 16;
    expect_refused("misaligned workspace", &args, 0, "workspace is not aligned;16");
    args = paged(), args.workspace = memory.bytes, args.workspace_bytes = UINT64_MAX;
    expect_refused("workspace of all bytes", &args, 0, "workspace_bytes is 18446744073709551615");
    args = paged(), args.workspace = (char*)out + (16 - (uintptr_t)out % 16) % 16, args.workspace_bytes = 16;
    expect_refused("workspace over out", &args, 0, "workspace overlaps out");
    args = paged(), args.workspace = memory.bytes, args.workspace_bytes = 64, args.seqused_k.data = memory.bytes;
    expect_refused("workspace over seqused_k", &args, 0, "workspace overlaps seqused_k");
    args = paged(), args.lse.data = table;
    expect_refused("lse over the table", &args, 0, "lse overlaps block_table");
    args = listed(), args.lse.data = indptr;
    expect_refused("lse over page_indptr", &args, 0, "lse overlaps page_indptr");
    args = with_tree(), args.lse.data = tree;
    expect_refused("lse over the tree", &args, 0, "lse overlaps tree_mask");
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0); /* what was found before a crash shall be seen */
    test_good_calls();
    test_forms();
    test_tables();
    test_options();
    test_workspace();
    test_good_calls(); /* after all those errors */
    return report();
}
